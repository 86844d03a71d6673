"""What a page of the site shows as code, and the imports that this code needs.

A reference page shows no import cell, since its imports stand in exported and hidden cells. `page_imports` collects
those that the visible code uses, and the site shows them at the top of the page, so that its code can be copied. """
import ast
import importlib
import json
import re
import subprocess
from pathlib import Path

HIDDEN = re.compile(r'^#\|\s*(hide|hide_input|export\w*|e(val|cho): false)\s*$', flags=re.MULTILINE)
NOT_SHOWN = re.compile(r'^.*#\|\s*hide_line\s*$|^#\|.*$|^[%!].*$', flags=re.MULTILINE)


def code_cells(nb: Path) -> list:  # sources
    "All code cells of a notebook."
    return [''.join(c['source']) for c in json.loads(nb.read_text())['cells'] if c['cell_type'] == 'code']


def visible_code(nb: Path) -> str:
    "The code that a page shows, in order."
    shown = [o for o in code_cells(nb) if not HIDDEN.search(o) and not o.startswith(('show_doc', '%', '!'))]
    return '\n'.join(NOT_SHOWN.sub('', o) for o in shown)


def public_names(module: str) -> set:
    "The names that a star import of `module` gives."
    mod = importlib.import_module(module)
    return set(getattr(mod, '__all__', None) or (o for o in vars(mod) if o[0] != '_'))


def undefined(script: str) -> set:  # names
    "What a script uses and nothing in it defines."
    stars = re.findall(r'^from ([\w.]+) import \*', script, flags=re.MULTILINE)
    known = {'display', 'get_ipython'}.union(*map(public_names, stars))
    script = re.sub(r'^from [\w.]+ import \*.*$', '', script, flags=re.MULTILINE)
    command = ['ruff', 'check', '--isolated', '--select=F821', '--output-format=json',
               f'--config=builtins={json.dumps(sorted(known))}', '-']
    found = json.loads(subprocess.run(command, input=script, capture_output=True, text=True).stdout)
    return {re.search('`(.*)`', o['message'])[1] for o in found}


def _imported(nb: Path):
    "(name, module, name there or '' for the module itself): own names, all imports of a notebook, exported names last."
    made = re.search(r'#\| default_exp ([\w.]+)', nb.read_text())
    own = f'collab_pretrained.{made[1]}' if made else None
    of_module = vars(importlib.import_module(own)) if own else {}
    yield from ((n, own, n) for n, o in of_module.items() if getattr(o, '__module__', own) == own)
    for source in code_cells(nb):
        try: tree = ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.MULTILINE))
        except SyntaxError: continue
        for o in ast.walk(tree):
            if isinstance(o, ast.Import): yield from ((a.asname or a.name.split('.')[0], a.name, '') for a in o.names)
            if not isinstance(o, ast.ImportFrom): continue
            for a in o.names:
                names = public_names(o.module) if a.name == '*' else [a.name]
                yield from ((a.asname or n, o.module, n) for n in names)
    yield from ((n, own, n) for n in of_module.get('__all__', ()))


def page_imports(nb: Path) -> str:  # code, '' where none is needed
    "The imports that the visible code of a page needs and doesn't show."
    missing, of_modules, lines = undefined(visible_code(nb)), {}, set()
    for name, module, there in dict((o[0], o) for o in _imported(nb)).values():
        if name not in missing: continue
        if there: of_modules.setdefault(module, set()).add(there if there == name else f'{there} as {name}')
        else: lines.add(f'import {module}' if name == module.split('.')[0] else f'import {module} as {name}')
    lines |= {f'from {module} import {", ".join(sorted(names))}' for module, names in of_modules.items()}
    code = '\n'.join(sorted(lines, key=lambda o: ('collab_pretrained' in o, o.startswith('from'), o)))
    return subprocess.run(['ruff', 'format', '--isolated', '--line-length=100', '-'], input=code, capture_output=True,
                          text=True, check=True).stdout


def script_of(nb: Path) -> str:
    "A page's code, as it is copied."
    return page_imports(nb) + visible_code(nb)
