"Passes on what settings.ini holds; the other facts of the package stand in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ini = ConfigParser(delimiters='=', interpolation=None)
ini.read_string((Path(__file__).parent/'settings.ini').read_text())
pkg, extras = ini['package'], ini['extras']

setup(
    author=pkg['author'],
    keywords=pkg['keywords'].split(),
    classifiers=[
        f'Development Status :: {pkg["status"]}',
        *(f'Intended Audience :: {o.strip()}' for o in pkg['audience'].split(',')),
        f'Natural Language :: {pkg["language"]}',
        'Programming Language :: Python :: 3',
    ],
    install_requires=pkg['requirements'].strip().split('\n'),
    extras_require={name: reqs.strip().split('\n') for name, reqs in extras.items()},
    entry_points=dict(
        console_scripts=pkg['console_scripts'].split(),
        nbdev=['collab_pretrained=collab_pretrained._modidx:d'],  # lets nbdev link names to their pages
    ),
)
