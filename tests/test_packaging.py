"What the package says of itself: one fact in each place, and a wheel that holds it all."
import ast
import configparser
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import collab_pretrained

ROOT = Path(__file__).resolve().parent.parent


SETTINGS = configparser.ConfigParser(delimiters='=', interpolation=None)
SETTINGS.read(ROOT/'settings.ini')


def names(requirements):
    "The names of a list of requirements, as one imports them."
    return {re.match(r'[\w-]+', o)[0].lower().replace('-', '_') for o in requirements.strip().split('\n')}


RUNTIME, EXTRAS = names(SETTINGS['package']['requirements']), set().union(*map(names, SETTINGS['extras'].values()))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel that was built from an sdist, as a registry's would be."
    out = tmp_path_factory.mktemp('dist')
    subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, ROOT], check=True, stdout=subprocess.DEVNULL
    )
    return zipfile.ZipFile(next(out.glob('*.whl')))


def test_wheel_holds_every_module(wheel):
    modules = {str(p.relative_to(ROOT)) for p in (ROOT/'collab_pretrained').rglob('*.py')}
    assert modules == {o for o in wheel.namelist() if o.endswith('.py')}
    assert (
        'collab_pretrained/py.typed' in wheel.namelist()
    )  # type checkers then read the annotations of an installed package
    assert 'collab_pretrained/serve/report.css' in wheel.namelist()


def test_wheel_says_what_the_settings_say(wheel):
    def read(name):
        return wheel.read(next(o for o in wheel.namelist() if o.endswith(name)))
    meta = message_from_bytes(read('METADATA'))
    required = [o.replace(' ', '') for o in meta.get_all('Requires-Dist') if 'extra ==' not in o]
    assert required == SETTINGS['package']['requirements'].split()
    assert set(meta.get_all('Provides-Extra')) == set(SETTINGS['extras'])
    assert meta['Version'] == collab_pretrained.__version__
    points = configparser.ConfigParser()
    points.read_string(read('entry_points.txt').decode())
    assert dict(points['console_scripts']) == {'collab-pretrained': 'collab_pretrained.cli:main'}
    assert dict(points['nbdev']) == {'collab_pretrained': 'collab_pretrained._modidx:d'}


def test_every_requirement_is_pinned():
    assert RUNTIME | EXTRAS <= names(
        '\n'.join(o for o in (ROOT / 'constraints.txt').read_text().split('\n') if '==' in o)
    )


@pytest.mark.parametrize(
    'module', sorted((ROOT / 'collab_pretrained').rglob('*.py')), ids=lambda o: str(o.relative_to(ROOT))
)
def test_every_import_is_required(module):
    tree = ast.parse(module.read_text())
    def roots(nodes):
        named = [a.name for o in nodes if isinstance(o, ast.Import) for a in o.names] + [
            o.module for o in nodes if isinstance(o, ast.ImportFrom) and not o.level
        ]
        return {o.split('.')[0] for o in named} - sys.stdlib_module_names - {'collab_pretrained'}
    with_fastai = {'cloudpickle', 'fastprogress', 'matplotlib'}
    assert roots(tree.body) <= RUNTIME | with_fastai
    assert roots([*ast.walk(tree)]) <= RUNTIME | with_fastai | EXTRAS


def test_readme_gives_the_commands_that_exist():
    readme, make = (ROOT/'README.md').read_text(), (ROOT/'Makefile').read_text()
    targets = set(re.findall(r'^make (\w+)', readme, flags=re.MULTILINE))
    assert {'demo', 'test'} <= targets <= set(re.search(r'^\.PHONY: (.*)$', make, flags=re.MULTILINE)[1].split())
    for o in re.findall(r'pip install .*', readme): assert '-c constraints.txt' in o, o


def test_import_needs_no_development_tool():
    code = '''import sys
for o in ('nbdev', 'nbconvert', 'pytest', 'hypothesis', 'polars', 'execnb', 'ghapi'): sys.modules[o] = None
import collab_pretrained.all'''
    subprocess.run([sys.executable, '-c', code], check=True)


def test_page_names_the_bounds_that_were_run():
    page = (ROOT/'nbs'/'compatibility.ipynb').read_text()
    lines = (ROOT/'constraints.txt').read_text().split('\n')
    pinned = dict(o.split(';')[0].strip().split('==') for o in lines if '==' in o)
    bounds = dict(o.strip().split('>=') for o in SETTINGS['package']['requirements'].strip().split('\n') if '>=' in o)
    names = {'torch': 'PyTorch', 'numpy': 'NumPy'}
    for name in ('torch', 'fastai', 'pandas', 'numpy', 'pyarrow', 'safetensors'):
        oldest, newest = re.search(rf'\| {names.get(name, name)} \| ([\d.]+) \| ([\d.]+) \|', page).groups()
        assert oldest.startswith(bounds[name]) and newest == pinned[name].split('+')[0], name
