"""Build the documentation site out of the notebooks, in a copy of the project, so that no build touches the notebooks.

Every notebook runs; nbdev turns names into links and exported code into reference entries; then Quarto makes the pages
where it is installed, else smalldocs, which reads the same `_quarto.yml`.
"""
import argparse
import ast
import html
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import tokenize
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType, NoneType

import yaml
from fastcore.docments import DocmentTbl, isdataclass, qual_name
from fastcore.nbio import dict2nb, mk_cell, read_nb, write_nb
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from nbdev.showdoc import BasicMarkdownRenderer
from pages import HIDDEN, page_imports
from run_nbs import run

ROOT = Path(__file__).resolve().parent.parent
ASIDE = '<!-- aside -->'  # ends a sentence about code that the site doesn't show
IGNORE = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '_proc', '_docs')


def plain(o) -> str: # an annotation or a default, as one would write it
    "Names without their modules, and functions by their names."
    if isinstance(o, (type, FunctionType, ModuleType)): return o.__name__
    return repr(o) if isinstance(o, str) else re.sub(r'\b(?:\w+\.)+(?=[A-Za-z_])', '', repr(o))


class ParamTable(DocmentTbl):
    "A table with a row for each parameter, described or not, so that a missing description shows."
    _columns = DocmentTbl._map
    has_docment = property(lambda self: bool(self.params))
    def __init__(self, obj):
        if isdataclass(obj) and obj.__init__.__code__.co_filename != '<string>': obj = obj.__init__ # of a subclass
        super().__init__(obj)
        self.params = self.params.filter(
            lambda o: self.dm[o]['docment'] != inspect._empty or 'VAR' not in self.dm[o]['kind'].name
        )
        if self.dm.get('return', {}).get('anno', None) is None: self.returns = False
        for d in self.dm.values():
            if d['anno'] is NoneType: d['anno'] = inspect._empty # concluded from a default of None
            elif d['anno'] is not inspect._empty: d['anno'] = plain(d['anno']).strip("'")
            default = d.get('default', inspect._empty)
            if default is not inspect._empty: d['default'] = f'`{plain(default)}`'


def with_source(cls:type) -> type: # the same class of the package
    "A dataclass of a notebook has no source, and so no docments."
    found = NbdevLookup()[cls.__name__]
    return getattr(import_module(found[1][:-3].replace('/', '.')), cls.__name__) if isinstance(found, tuple) else cls


def delegate_to_dataclasses(f) -> None:
    "Let a function that delegates to the generated `__init__` of a dataclass delegate to the class: it has a source."
    while (to := getattr(f, '__delwrap__', None)) is not None:
        if isinstance(to, FunctionType) and to.__code__.co_filename == '<string>':
            f.__delwrap__ = with_source(to.__globals__[to.__qualname__.split('.')[0]])
        f = to


def as_options(
    table:str, # Markdown, a row for each parameter
    sig:inspect.Signature, # of a command's function
) -> str:
    "The parameters of a command, as they are written in a shell."
    def option(m):
        if m[1] not in sig.parameters: return m[0]
        shown = m[1].upper() if sig.parameters[m[1]].default is inspect._empty else f'--{m[1].replace("_", "-")}'
        return f'| `{shown}` |' if m[1] != 'reading' else '| *how tables are read* |'
    table = re.sub(r'^\| (\w+) \|', option, table.replace(r' \| None', '').replace('`None`', ''), flags=re.MULTILINE)
    options = '|  | `--sep`, `--no-header` and more, see `Reading` |'
    return re.sub(r'Reading \| `Reading\(.*?\)` \| .*? \|', options, table)


class Entry(BasicMarkdownRenderer):
    "A reference entry: the bare signature, the docstring, and what each parameter is, in a table."
    def __init__(self, sym, name=None, **kwargs):
        if isdataclass(sym): sym = with_source(sym)
        delegate_to_dataclasses(sym)
        super().__init__(sym, name or qual_name(sym), **kwargs)
        if hasattr(sym, '__wrapped__'):  # a decorator's function bears the name of the class, and what it wraps doesn't
            self.sym, self.sig, self.fn = sym, inspect.signature(sym, eval_str=True), f'{sym.__module__}.{self.nm}'
        # neither a property nor a bare fastai Callback, which takes a function for each event, is called with what the
        # table would hold
        is_callback = any(o.__name__ == 'Callback' for o in getattr(sym, '__mro__', ())) and '__init__' not in vars(sym)
        self.is_command = self.nm.startswith('cli_')
        self.is_called = self.sig and not isinstance(sym, property) and not is_callback

    def signature(self) -> str: # the call as one writes it, without annotations
        "What the table does not say: order, and what is keyword-only."
        if not self.is_called: return self.nm
        if self.is_command:
            arguments = ' '.join(n.upper() for n, p in self.sig.parameters.items() if p.default is p.empty)
            return f'collab-pretrained {self.nm[4:]} {arguments}'.rstrip() + ' ...'
        params, star = [], False
        for n, p in self.sig.parameters.items():
            if n == 'self': continue
            if p.kind == p.KEYWORD_ONLY and not star: params.append('*')
            star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
            default = '' if p.default is p.empty else f'={plain(p.default)}'
            params.append({p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '') + n + default)
        one = f'{self.nm}({", ".join(params)})'
        return one if len(one) <= 90 else f'{self.nm}(\n    ' + ',\n    '.join(params) + ')'

    def _repr_markdown_(self):
        source = NbdevLookup().code(self.fn)
        link = f'[source]({source}){{.entry-source}}\n\n' if source else ''
        title = f'collab-pretrained {self.nm[4:]}' if self.is_command else self.nm
        head = f'{"#"*self.title_level} {title} {{#{self.nm.lower()}}}'
        table = ParamTable(self.sym)._repr_markdown_() if self.is_called else ''
        if self.is_command: table = as_options(table, self.sig)
        if table: table = f'::: {{.entry-params}}\n{table}\n:::\n'
        language = 'sh' if self.is_command else 'python'
        return f'{link}{head}\n\n```{language}\n{self.signature()}\n```\n\n{self.docs}\n\n{table}'


def stage(dest:Path) -> Path: # the notebooks' copy
    "Copy what the site is made of into `dest`, and have nbdev render entries with `Entry`."
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    for o in ('nbs', 'collab_pretrained', 'tests', 'benchmarks'): shutil.copytree(ROOT/o, dest/o, ignore=IGNORE)
    toml = (
        (ROOT / 'pyproject.toml').read_text().replace('[tool.nbdev]\n', '[tool.nbdev]\nrenderer = "build_docs.Entry"\n')
    )
    (dest/'pyproject.toml').write_text(toml)
    return dest/'nbs'


def prepare(nb_path:Path) -> None:
    """Give documented public methods of exported classes entries of their own, and keep nbdev from losing text and
    running examples."""
    nb = read_nb(nb_path)
    shown = {m for c in nb.cells for m in re.findall(r'^show_doc\(([\w.]+)', c.source, flags=re.M)}
    nb.cells = [c for c in nb.cells if not c.source.endswith(ASIDE)]
    # nbdev takes title and summary out, with all that stands in their cell
    head = re.match(r'(?:(?:#|>) .*\n*)*', nb.cells[0].source)[0]
    nb.cells[:1] = [mk_cell(o, 'markdown') for o in (head, nb.cells[0].source[len(head):]) if o]
    imports_shown = page_imports(nb_path)
    cells = []
    for c in nb.cells:
        if imports_shown and c.cell_type == 'code':  # above all other code
            cells.append(mk_cell(f'#| eval: false\n{imports_shown}'))
            imports_shown = ''
        cells.append(c)
        body = c.parsed_() or []
        imports = [isinstance(o, (ast.Import, ast.ImportFrom)) for top in body for o in ast.walk(top)]
        if (
            any(imports)
            and not all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body)
            and not {'export', 'exporti', 'exports'} & c.directives.keys()
        ):
            c.source = f'#| eval: false\n{c.source}' # entries need imports, which nbdev runs for them, but no example
        if 'export' not in c.directives: continue
        for cls in (o for o in body if isinstance(o, ast.ClassDef) and o.name[0] != '_'):
            names = [
                f'{cls.name}.{o.name}'
                for o in cls.body
                if isinstance(o, ast.FunctionDef) and o.name[0] != '_' and ast.get_docstring(o)
            ]
            if cls.name not in shown and names: cells.append(mk_cell(f'show_doc({cls.name})'))
            cells += [mk_cell(f'show_doc({n})') for n in names if n not in shown]
    nb.cells = cells
    write_nb(nb, nb_path)


def comments_above(source:str, width:int=100) -> str:
    "Comments behind code on lines that are too long stand above them."
    lines = source.split('\n')
    for o in reversed([*tokenize.generate_tokens(io.StringIO(source).readline)]):
        if o.type != tokenize.COMMENT: continue
        line = o.start[0] - 1
        code = lines[line][:o.start[1]].rstrip()
        if code and len(lines[line]) > width:
            lines[line:line + 1] = [' '*(len(code) - len(code.lstrip())) + o.string, code]
    return '\n'.join(lines)


def in_short_lines(nb_path:Path) -> None:
    "Break the lines of visible code so that they fit a page; what runs, and what is exported, has been taken already."
    nb = read_nb(nb_path)
    shown = [c for c in nb.cells if c.cell_type == 'code' and c.parsed_() and not HIDDEN.search(c.source)]
    for c in shown: c.source = comments_above(c.source)
    with tempfile.TemporaryDirectory() as tmp:
        write_nb(dict2nb({'cells': shown, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}), Path(tmp)/'shown.ipynb')
        command = ['ruff', 'format', '-q', '--isolated', '--line-length=100', '--config=format.quote-style="preserve"']
        subprocess.run([*command, f'{tmp}/shown.ipynb'], check=True)
        formatted = read_nb(Path(tmp)/'shown.ipynb').cells
    for c, o in zip(shown, formatted, strict=True): c.source = o.source
    write_nb(nb, nb_path)


def page_name(rel:Path) -> Path: # the page's source, named as nbdev's links expect
    "`21_weights.match.ipynb` becomes `weights.match.ipynb`."
    return nbpath2html(rel).with_suffix('.ipynb')


def site_config(
    nbs: Path,
    engine: str,  # 'quarto' or 'smalldocs'
) -> dict:  # `_quarto.yml`, with the sidebar's globs spelled out in the notebooks' order
    "The site's configuration for the pages under their final names."
    text = (nbs/'_quarto.yml').read_text().replace('{repository}', get_config().git_url)
    cfg, facts = yaml.safe_load(text), yaml.safe_load((nbs/'nbdev.yml').read_text())
    for k in ('project', 'website'): cfg[k] = facts[k] | cfg[k]
    del cfg['metadata-files']
    if engine == 'smalldocs': del cfg['format']['commonmark'], cfg['format']['html']['grid'] # it knows neither
    for o in cfg['website']['sidebar']['contents']:
        if isinstance(o['contents'], dict):
            o['contents'] = [str(page_name(p.relative_to(nbs))) for p in sorted(nbs.glob(o['contents']['auto']))]
    return cfg


def without_entry() -> set: # 'weights.match.html#name'
    "Where nbdev would link names that modules share and don't offer: they have no entry."
    from collab_pretrained._modidx import d
    return {
        where
        for module, names in d['syms'].items()
        for name, (where, _) in names.items()
        if name.removeprefix(module + '.').split('.')[0] not in import_module(module).__all__
    }


def rename_pages(nbs:Path, proc:Path) -> None:
    """Give each processed notebook its page's name, and make links into the site relative, so that it works at any
    address."""
    url, unlinked = get_config().doc_url, without_entry()
    for p in sorted(proc.rglob('*.ipynb')):
        rel = p.relative_to(proc)
        text = re.sub(r'output-file: [\w.-]+\\n', '', p.read_text())
        text = re.sub(r'"%%shell\\n",\s*|%%shell\\n', '', text)
        text = re.sub(r'\[(`_\w+`)\]\([^)]+\)', r'\1', text) # private names have no entry to link to
        text = re.sub(r'\[(`[\w.]+`)\]\(([^)]+)\)', lambda m: m[1] if m[2].split('/')[-1] in unlinked else m[0], text)
        text = text.replace(url, '../'*(len(rel.parts) - 1) or './')
        text = re.sub(r'\]\(((?:\.\./)*)\d+_([\w.]+\.ipynb)', r'](\1\2', text)  # links to notebooks, by their numbers
        p.unlink()
        (proc/page_name(rel)).write_text(text)


def render(proc:Path, engine:str) -> Path: # the site
    "Make the pages."
    if engine == 'quarto': subprocess.run(['quarto', 'render', '--no-execute'], cwd=proc, check=True)
    else:
        subprocess.run(['smalldocs', 'render', '--strict', '-q'], cwd=proc, check=True)
        index_summaries(proc/'_docs')
    return proc/'_docs'


def index_summaries(site:Path) -> None:
    "Let the search find pages by their summaries too, which smalldocs leaves out."
    entries = json.loads((site/'search.json').read_text())
    for first in {o['href'].split('#')[0]: o for o in reversed(entries)}.values():
        page = (site/first['href'].split('#')[0]).read_text()
        if found := re.search(r'<meta name="description" content="([^"]*)"', page):
            first['text'] = f'{html.unescape(found[1])} {first["text"]}'
    (site/'search.json').write_text(json.dumps(entries, ensure_ascii=False))


def build(
    dest:Path, # folder of the site; an older one there is replaced
    execute:bool=True, # run the notebooks, or take the outputs they hold?
    engine:str=None, # 'quarto' or 'smalldocs'; None takes Quarto where it is installed
) -> None:
    "Build the site into `dest`."
    engine = engine or ('quarto' if shutil.which('quarto') else 'smalldocs')
    with tempfile.TemporaryDirectory() as tmp:
        nbs = stage(Path(tmp)/'site')
        os.chdir(nbs.parent)
        os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT/'tools'), os.environ.get('PYTHONPATH', '')])
        if execute: run(nbs)
        for o in nbs.rglob('*.ipynb'):
            in_short_lines(o)
            prepare(o)
        refresh_quarto_yml()
        proc = proc_nbs(nbs, n_workers=2)
        (proc/'_quarto.yml').write_text(yaml.safe_dump(site_config(nbs, engine), sort_keys=False))
        rename_pages(nbs, proc)
        site = render(proc, engine)
        shutil.rmtree(dest, ignore_errors=True)
        shutil.move(site, dest)
    print(f'{len(list(dest.rglob("*.html")))} pages in {dest}, made with {engine}')


def main() -> None:
    "The command line."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--dest', type=Path, default=ROOT/'_docs', help='folder of the site (default: _docs)')
    p.add_argument(
        '--saved', action='store_true', help='take the outputs that the notebooks hold, instead of running them'
    )
    p.add_argument('--engine', choices=['quarto', 'smalldocs'], help='default: quarto where it is installed')
    args = p.parse_args()
    build(args.dest.resolve(), not args.saved, args.engine)


if __name__ == '__main__': main()
