"""Make README.md from nbs/index.ipynb and the outputs it holds: `readme.py` writes it, `readme.py --check` compares.

Hidden cells go, as on the documentation site. Names in backticks and links lead to files of the repository, which are
there wherever README is read. Pictures are put into index_files/.
"""
import re
import sys
from pathlib import Path

from nbconvert import MarkdownExporter
from nbdev.config import get_config, nbpath2html
from nbdev.process import NBProcessor
from nbdev.processors import (
    add_links,
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    rm_export,
    rm_header_dash,
    strip_ansi,
)
from nbformat import from_dict

ROOT = Path(__file__).resolve().parent.parent
PROCS = [strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, clean_magics, hide_, add_links]
MARK = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit that notebook. -->\n\n'


def in_repository(text: str) -> str:
    "The links of a page of the site, to the notebooks that its pages are made from."
    notebooks = {nbpath2html(o.relative_to(ROOT/'nbs')).name: o.relative_to(ROOT) for o in (ROOT/'nbs').glob('*.ipynb')}
    text = re.sub(r'\]\((?=[\w/]+\.ipynb)', '](nbs/', text)
    text = re.sub(re.escape(get_config().doc_url) + r'([\w.]+\.html)(#[\w.]+)?', lambda o: str(notebooks[o[1]]), text)
    return re.sub(r'(?<![\[(])\bCONTRIBUTING\.md', '[CONTRIBUTING.md](CONTRIBUTING.md)', text)


def render(nb:Path) -> dict: # path below the root: bytes
    "README.md, and the pictures it shows."
    proc = NBProcessor(nb, procs=PROCS)
    proc.process()
    cells = [{k: v for k, v in o.items() if k[-1] != '_'} for o in proc.nb.cells]
    text, made = MarkdownExporter().from_notebook_node(
        from_dict({**proc.nb, 'cells': cells, 'metadata': {'language_info': {'name': 'python'}}}),
        resources={'output_files_dir': 'index_files', 'unique_key': 'index'},
    )
    # GitHub and PyPI would show pandas' styles as text
    text = re.sub(r'<style scoped>.*?</style>\n?', '', in_repository(text), flags=re.DOTALL)
    text = MARK + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return {'README.md': text.encode(), **{k: v for k, v in made['outputs'].items()}}


def main() -> None:
    "Write the files, or with `--check` name those that differ."
    files = render(ROOT/'nbs/index.ipynb')
    old = {
        str(p.relative_to(ROOT)): p.read_bytes()
        for p in [ROOT / 'README.md', *ROOT.glob('index_files/*')]
        if p.is_file()
    }
    differ = sorted(o for o in {*files, *old} if files.get(o) != old.get(o))
    if '--check' in sys.argv[1:]:
        if differ:
            sys.exit(
                f'{", ".join(differ)}: not what nbs/index.ipynb makes; '
                'run `python tools/readme.py` and commit the result'
            )
        return print('README.md is what nbs/index.ipynb makes')
    for o in differ:
        if o not in files: (ROOT/o).unlink()
        else:
            (ROOT/o).parent.mkdir(exist_ok=True)
            (ROOT/o).write_bytes(files[o])
    print('Written: ' + ', '.join(differ) if differ else 'README.md was up to date')


if __name__ == '__main__': main()
