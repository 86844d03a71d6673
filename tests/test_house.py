"The rooms: who may import what, how large a room is, and that what was saved before the rooms were built still loads."
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/'collab_pretrained'
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
FIXTURES = Path(__file__).parent/'fixtures'/'before_rooms'
ORDER = {nb.stem.split('_', 1)[1]: nb.stem.split('_', 1)[0] for nb in NOTEBOOKS}  # 'ids.vocab' -> '12'


def module_of(path): return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def imports(path):
    "(module, name) of each import of our own modules, the module as in `ORDER`."
    here = ['collab_pretrained', *module_of(path).split('.')]
    for o in ast.walk(ast.parse(path.read_text())):
        if not isinstance(o, ast.ImportFrom) or not o.level: continue
        base = [*here[:len(here) - o.level], *(o.module.split('.') if o.module else [])][1:]
        for a in o.names: yield '.'.join([*base, a.name] if '.'.join([*base, a.name]) in ORDER else base), a.name


MODULES = [o for o in sorted(PACKAGE.rglob('*.py')) if module_of(o) in ORDER]


@pytest.mark.parametrize('path', MODULES, ids=module_of)
def test_no_import_upwards_and_no_private_name(path):
    for module, name in imports(path):
        assert not name.startswith('_') or name == '__version__', f'{name} of {module}'
        assert not module or ORDER[module] < ORDER[module_of(path)], f'{module} is above {module_of(path)}'


def test_rooms_are_small():
    for room in {o.parent for o in MODULES}: assert len([o for o in MODULES if o.parent == room]) <= 10, room


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
