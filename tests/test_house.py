"The rooms: who may import what, how large a room is, and that what was saved before the rooms were built still loads."
import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from pages import visible_code  # noqa: E402

PACKAGE = ROOT/'collab_pretrained'
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
FIXTURES = Path(__file__).parent/'fixtures'/'before_rooms'
ORDER = {nb.stem.split('_', 1)[1]: nb.stem.split('_', 1)[0] for nb in NOTEBOOKS}  # 'ids.vocab' -> '12'


def module_of(path): return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
def cells_of(nb): return [(o['cell_type'], ''.join(o['source'])) for o in json.loads(nb.read_text())['cells']]
def is_exported(kind, source): return kind == 'code' and bool(re.match(r'#\|\s*export', source))
def code_of(source): return re.sub(r'^(#\|.*)?\n?', '', source, flags=re.MULTILINE)
def is_import(node): return isinstance(node, (ast.Import, ast.ImportFrom))
def only_imports(source): return all(map(is_import, ast.parse(code_of(source)).body))


def imports(path):
    "(module, name) of each import of our own modules, the module as in `ORDER`."
    here = ['collab_pretrained', *module_of(path).split('.')]
    for o in ast.walk(ast.parse(path.read_text())):
        if not isinstance(o, ast.ImportFrom) or not (o.level or o.module.startswith('collab_pretrained')): continue
        base = [*(here[:len(here) - o.level] if o.level else []), *(o.module.split('.') if o.module else [])][1:]
        for a in o.names: yield '.'.join([*base, a.name] if '.'.join([*base, a.name]) in ORDER else base), a.name


# Bounds that may only get lower
MEDIAN_LINES, SHARE_OVER_25, LINES_OVER_120, CELLS_IN_A_ROW = 15, .043, 0, 165

MODULES = [o for o in sorted(PACKAGE.rglob('*.py')) if module_of(o) in ORDER]


@pytest.mark.parametrize('path', MODULES, ids=module_of)
def test_no_import_upwards_and_no_private_name(path):
    for module, name in imports(path):
        assert not name.startswith('_') or name == '__version__', f'{name} of {module}'
        assert not module or ORDER[module] < ORDER[module_of(path)], f'{module} is above {module_of(path)}'


def test_a_public_name_means_one_thing():
    "Names in backticks are linked to the one module that defines them; methods that we patch in are not among them."
    homes = {}
    for path in PACKAGE.rglob('*.py'):
        for o in ast.parse(path.read_text()).body:
            is_patched = any(getattr(d, 'id', '') == 'patch' for d in getattr(o, 'decorator_list', []))
            if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and o.name[0] != '_' and not is_patched:
                homes.setdefault(o.name, []).append(module_of(path))
    assert not {name: o for name, o in homes.items() if len(o) > 1}


def test_rooms_are_small():
    for room in {o.parent for o in MODULES}: assert len([o for o in MODULES if o.parent == room]) <= 10, room


def exported_cells():
    "The code of each exported cell but imports, without its directives and empty lines."
    for nb in NOTEBOOKS:
        for kind, source in cells_of(nb):
            if is_exported(kind, source) and not only_imports(source): yield code_of(source)


def test_cells_are_short():
    cells = [o.split('\n') for o in exported_cells()]
    sizes = [len(o) for o in cells]
    over = sum(o > 25 for o in sizes)/len(sizes)
    print(
        f'{len(cells)} exported cells, {sum(sizes)} lines, median {statistics.median(sizes)}, {over:.1%} over 25 lines'
    )
    assert statistics.median(sizes) <= MEDIAN_LINES and over <= SHARE_OVER_25
    assert sum(len(line) > 120 for o in cells for line in o) <= LINES_OVER_120


def follow_one_another(nb):
    "How many exported cells follow another one with nothing said or shown between, hidden cells left out."
    shown = [o for o in cells_of(nb) if is_exported(*o) or not re.search(r'^#\|\s*hide\s*$', o[1], flags=re.MULTILINE)]
    exported = [is_exported(*o) and not only_imports(o[1]) for o in shown]
    return sum(a and b for a, b in zip(exported, exported[1:], strict=False))


def test_something_is_said_between_cells():
    "A page says why before it says how."
    found = {nb.stem: n for nb in NOTEBOOKS if (n := follow_one_another(nb))}
    assert sum(found.values()) <= CELLS_IN_A_ROW, found


def shared_functions():
    "(module, function) of those that another module imports."
    trees = {module_of(o): ast.parse(o.read_text()) for o in MODULES}
    wanted = {(m, name) for o in MODULES for m, name in imports(o) if m != module_of(o)}
    for module, tree in trees.items():
        yield from ((module, o) for o in tree.body if isinstance(o, ast.FunctionDef) and (module, o.name) in wanted)


def test_what_modules_share_is_described():
    "A docstring, a type or a comment for each parameter, and what comes back, if anything does."
    lines = {module_of(o): o.read_text().split('\n') for o in MODULES}
    lost = []
    for module, f in shared_functions():
        args = [o for o in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if o.arg not in ('self', 'cls')]
        bare = [o.arg for o in args if not o.annotation and '#' not in lines[module][o.lineno - 1]]
        inner = {id(p) for o in ast.walk(f) if isinstance(o, ast.FunctionDef) and o is not f for p in ast.walk(o)}
        gives = any(isinstance(o, ast.Return) and o.value is not None and id(o) not in inner for o in ast.walk(f))
        if bare or not ast.get_docstring(f) or gives and f.returns is None: lost.append(f'{module}.{f.name} {bare}')
    assert not lost, lost


def test_pages_call_no_private_name():
    calls = {nb.stem: lines for nb in NOTEBOOKS if (lines := [*filter(calls_private, visible_code(nb).split('\n'))])}
    assert not calls


def calls_private(line): return bool(re.search(r'(?<![\w.])_[a-z]\w*\(', line, flags=re.IGNORECASE))


def test_nothing_is_left_of_a_run():
    "Files that git neither has nor ignores, in the folders that notebooks and tests run in."
    done = subprocess.run(
        ['git', 'ls-files', '--others', '--exclude-standard', 'nbs', 'collab_pretrained', 'tests'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    left = [o for o in done.stdout.splitlines() if not o.endswith(('.py', '.ipynb'))]
    assert not left, f'a notebook or a test wrote {left}'


@pytest.mark.parametrize('path', sorted((ROOT/'nbs').rglob('*.ipynb')), ids=lambda o: o.stem)
def test_outputs_name_no_machine(path):
    "Nor do those of hidden cells: a folder of whoever ran the page tells readers nothing."
    outputs = [json.dumps(o['outputs']) for o in json.loads(path.read_text())['cells'] if o['cell_type'] == 'code']
    assert not re.findall(r'/(?:work|home|root|tmp|Users)/\S{0,40}|site-packages', '\n'.join(outputs))


def test_notebook_names_its_module():
    for nb in NOTEBOOKS:
        named = re.search(r'#\| default_exp ([\w.]+)', nb.read_text())[1]
        assert named == nb.stem.split('_', 1)[1] and (PACKAGE/f'{named.replace(".", "/")}.py').is_file(), nb.name


@pytest.mark.parametrize('kind', ['ratings', 'ranking'])
def test_learners_exported_before_the_rooms_load(kind):
    "In a process that imported nothing but fastai, with all methods."
    code = f'''import json, sys, warnings; warnings.filterwarnings('ignore')
from fastai.learner import load_learner
learn = load_learner({str(FIXTURES / f"{kind}.export.pkl")!r})
x = [[u, i] for u, i in zip(learn.dls.classes['user'][1:6], learn.dls.classes['item'][1:6])]
for method in ('recommend', 'evaluate', 'update', 'fold_in', 'plot_bias', 'save_pretrained', 'drop_ids'):
    getattr(learn, method)
shape = learn.recommend(k=2, exclude_seen=False).shape
print(json.dumps([type(learn).__module__, shape, learn.match_report.users.coverage]))'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == ['collab_pretrained.learner.core', [26, 4], 1.0]


@pytest.mark.parametrize('kind', ['ratings', 'ranking'])
def test_pairs_and_folders_saved_before_the_rooms_load(kind):
    import torch

    from collab_pretrained.weights.folders import read_folder
    from collab_pretrained.weights.pairs import read_pair
    pair, folder = read_pair(FIXTURES/f'{kind}.pth', with_opt=True), read_folder(FIXTURES/kind)
    assert pair[1] == folder[1] and all(torch.equal(pair[0][k], v) for k, v in folder[0].items())
    assert pair[0]['u_weight.weight'].shape == (14, 3) and pair[2]['opt']['state']


RELEASED = sorted(o for o in FIXTURES.parent.glob('[0-9]*') if o.is_dir())


@pytest.mark.parametrize('kind', ['ratings', 'ranking'])
@pytest.mark.parametrize('version', RELEASED, ids=lambda o: o.name)
def test_models_of_released_versions_load(version, kind):
    "Their lists are as they were, and a night can be taken in."
    import numpy as np
    import pandas as pd

    from collab_pretrained.all import CollabLearner
    learn = CollabLearner.from_pretrained(version/kind)
    lists, before = learn.recommend(k=3), pd.read_csv(version/f'{kind}.csv')
    assert lists[['user', 'rank', 'item']].equals(before[['user', 'rank', 'item']])
    assert np.allclose(lists.score, before.score, atol=1e-4)
    night = pd.DataFrame({'user': [10**6], 'item': before['item'][:1], 'rating': 4., 'time': 1_800_000_000})
    assert learn.update(night).n_new == 1 and len(learn.recommend([10**6], k=3)) == 3
