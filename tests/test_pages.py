"""What a reader sees of a page runs when it is copied: its visible code, in order, in a fresh process and an empty
folder."""
import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from pages import HIDDEN, NOT_SHOWN, page_imports, script_of, undefined  # noqa: E402
from shell import shell  # noqa: E402

NBS = ROOT/'nbs'
READ_FIRST = [NBS/'index.ipynb', *sorted((NBS/'tutorials').glob('*.ipynb'))]
HOWTO = [*sorted((NBS/'howto').glob('*.ipynb')), NBS/'glossary.ipynb', NBS/'compatibility.ipynb']
REFERENCE = sorted(NBS.glob('[0-9]*.ipynb'))


def readme_script():
    return '\n'.join(re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), flags=re.DOTALL))


def run_script(script):
    "What a script says as it fails, in an empty folder of a checkout; '' if it runs."
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/'benchmarks').symlink_to(ROOT/'benchmarks')
        (Path(folder)/'page.py').write_text("import matplotlib; matplotlib.use('agg')\n" + script)
        done = subprocess.run([sys.executable, 'page.py'], cwd=folder, capture_output=True, text=True)
    return done.stderr[-2000:] if done.returncode else ''


@pytest.fixture(scope='module')
def said():
    "What the scripts of README, index, the tutorials and the how-to pages (as one) say; two run at a time."
    scripts = {'README': readme_script(), **{nb.stem: script_of(nb) for nb in READ_FIRST}}
    scripts['howto'] = '\n'.join(map(script_of, HOWTO))
    with ThreadPoolExecutor(2) as pool: return dict(zip(scripts, pool.map(run_script, scripts.values()), strict=True))


@pytest.mark.parametrize('page', ['README', 'howto', *(o.stem for o in READ_FIRST)])
def test_copied_code_runs(said, page): assert not said[page]


@pytest.mark.parametrize('nb', [*READ_FIRST, *HOWTO, *REFERENCE], ids=lambda o: o.stem)
def test_pages_need_no_newer_python_than_promised(nb):
    assert 'catch_warnings(action' not in nb.read_text()  # Python 3.11


@pytest.mark.parametrize('nb', HOWTO, ids=lambda o: o.stem)
def test_howto_pages_define_what_they_use(nb): assert not undefined(script_of(nb))


# -- blocks of the how-to pages that no cell runs

def blocks(nb, language):
    "The code blocks of a language in a notebook's prose."
    prose = '\n'.join(''.join(c['source']) for c in json.loads(nb.read_text())['cells'] if c['cell_type'] == 'markdown')
    return re.findall(rf'```{language}\n(.*?)```', prose, flags=re.DOTALL)


def test_shell_lines_of_the_nightly_job_run(tmp_path):
    from collab_pretrained.core import planted_ratings
    ratings = planted_ratings()
    for name, period in {'first': 'early', 'tonight': 'late'}.items():
        table = ratings.loc[ratings.period == period, ['user', 'item', 'rating']]
        table.to_csv(tmp_path/f'{name}.csv', index=False)
    night, first = blocks(NBS/'howto'/'nightly_job.ipynb', 'sh')
    (tmp_path/'night.sh').write_text(night)
    done = subprocess.run(['sh', '-e', '-c', first], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path/'lists.parquet').is_file(), done.stderr
    lists = (tmp_path/'lists.parquet').read_bytes()
    done = subprocess.run(['sh', 'night.sh', 'missing.csv'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and (tmp_path/'lists.parquet').read_bytes() == lists, done.stderr
    (tmp_path/'recommender').symlink_to(tmp_path)
    line = re.search(r'"15 2 \* \* \*  (.*)\\n"', (NBS/'howto/nightly_job.ipynb').read_text())[1]
    env = {**os.environ, 'HOME': str(tmp_path)}
    cron = subprocess.run(['sh', '-c', line], cwd='/', env=env, capture_output=True, text=True)
    assert 'refused' in cron.stdout and (tmp_path/'lists.parquet').read_bytes() == lists, cron.stderr


WITH_SHELL = '83_cli.commands', '84_cli.night', '85_cli.versions'  # pages whose Python stands between shell lines


def test_commands_of_readme_run(tmp_path, monkeypatch):
    from collab_pretrained.cli import main
    from collab_pretrained.core import planted_ratings
    monkeypatch.chdir(tmp_path)
    ratings = planted_ratings()
    for name, period in {'monday': 'early', 'tuesday': 'late'}.items():
        ratings.loc[ratings.period == period, ['user', 'item', 'rating']].to_csv(f'{name}.csv', index=False)
    lines = re.findall(r'^collab-pretrained .*$', (ROOT/'README.md').read_text(), flags=re.MULTILINE)
    assert len(lines) >= 3 and [main(o.split()[1:]) for o in lines] == [0]*len(lines)
    assert (tmp_path/'lists.csv').is_file()


@pytest.mark.parametrize('page', WITH_SHELL)
def test_shell_lines_of_reference_pages_run(page, tmp_path, monkeypatch, capsys):
    "In order, with the visible Python between them, in an empty folder; each with the exit status that the page shows."
    monkeypatch.chdir(tmp_path)
    space, statuses = {}, []
    exec(page_imports(NBS/f'{page}.ipynb'), space)
    for cell in json.loads((NBS/f'{page}.ipynb').read_text())['cells']:
        source, saved = ''.join(cell['source']), json.dumps(cell.get('outputs'))
        if cell['cell_type'] != 'code' or HIDDEN.search(source) or source.startswith('show_doc'): continue
        if not source.startswith('%%shell'):
            exec(NOT_SHOWN.sub('', source), space)
            continue
        capsys.readouterr()
        shell('', source.partition('\n')[2])
        statuses += [(re.findall(r'exit status \d', o), source) for o in (capsys.readouterr().out, saved)]
    assert len(statuses) > 4 and statuses[::2] == statuses[1::2]


def test_units_and_workflow_of_the_nightly_job_can_be_read(tmp_path):
    page = NBS/'howto'/'nightly_job.ipynb'
    service, timer = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    for parser, text in zip((service, timer), blocks(page, 'ini'), strict=True): parser.read_string(text)
    assert service['Service']['ExecStart'].endswith('sh night.sh tonight.csv')
    assert timer['Timer']['Persistent'] == 'true'
    if shutil.which('systemd-analyze'):
        units = [tmp_path/'night.service', tmp_path/'night.timer']
        for unit, text in zip(units, blocks(page, 'ini'), strict=True): unit.write_text(text)
        done = subprocess.run(['systemd-analyze', 'verify', '--man=no', *units], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, '')
    steps = yaml.safe_load(blocks(page, 'yaml')[0])['jobs']['night']['steps']
    assert {'run': 'sh night.sh tonight.csv'} in steps


def test_optuna_tunes(tmp_path):
    pytest.importorskip('optuna', reason='optuna is an extra: tune')
    page = NBS/'howto'/'evaluate_and_tune.ipynb'
    block, = blocks(page, 'python')
    script = f'{script_of(page)}\n{block.replace("n_trials=20", "n_trials=3")}\nassert len(study.trials) == 3'
    assert not run_script(script)


def test_visible_code_of_reference_pages_defines_what_it_uses():
    assert not {nb.stem: names for nb in REFERENCE if (names := sorted(undefined(script_of(nb))))}


@pytest.mark.parametrize('nb', [o for o in REFERENCE if o.stem not in WITH_SHELL], ids=lambda o: o.stem)
def test_copied_code_of_reference_pages_runs(nb, request):
    if not request.config.getoption('nightly'):
        pytest.skip('the notebook itself is run in each `make test`; the copied code in `make nightly`')
    assert not run_script(script_of(nb))


# -- links

# Every address outside of this repository that README, the site or a document links to
EXTERNAL = {
    'https://arxiv.org/abs/1711.05101',
    'https://arxiv.org/abs/1802.01483',
    'https://docs.fast.ai/collab.html',
    'https://doi.org/10.1007/BF02289451',
    'https://github.com/meta-pytorch/torchrec',
    'https://huggingface.co/docs/accelerate',
    'https://keepachangelog.com/en/1.1.0/',
    'https://semver.org/',
}


def prose_of(path):
    "What a document says, or the prose of a notebook, without inline code."
    text = path.read_text()
    if path.suffix == '.ipynb':
        text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    return re.sub(r'`[^`\n]*`', '', text)


PROSE = [*(ROOT/o for o in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')), *READ_FIRST, *HOWTO, *REFERENCE]


def test_costs_on_the_page_of_scale_are_those_that_were_measured():
    "The page has its figures as text, so that it runs where it is copied; the benchmark keeps them in a file."
    page = script_of(NBS/'tutorials'/'scale.ipynb')
    stated = next(o.value for o in ast.parse(page).body if ast.unparse(o).startswith('measured = '))
    shown = pd.DataFrame(ast.literal_eval(stated.args[0]))
    found = pd.read_csv(ROOT/'benchmarks'/'results'/'serve.csv')
    mib = {'fit_als, GiB': 'fit_mib', 'a night, GiB': 'night_mib'}
    names = {'a round, s': 'round_s', 'a night, s': 'night_s', 'folder, MB': 'folder_mb', 'users': 'users'}
    of = {k: found[o] for k, o in names.items()} | {k: found[o]/1024 for k, o in mib.items()}
    of |= {'million ratings': found.ratings/1e6, '1,000 lists, s': 1000/found.lists_per_s}
    for name, values in of.items(): np.testing.assert_allclose(shown[name], values, rtol=.02, err_msg=name)


def test_external_links_are_listed():
    found = {o for p in PROSE for o in re.findall(r'\]\((https?://[^)\s]+)\)', prose_of(p))}
    assert found == EXTERNAL


def test_links_between_files_lead_to_files():
    lost = [
        (p.name, o) for p in PROSE for o in re.findall(r'\]\(([^):#\s]+)\)', prose_of(p)) if not (p.parent / o).exists()
    ]
    assert not lost


def test_the_address_of_the_project_stands_in_one_file():
    home = re.findall(
        r'^(?:Repository|Documentation) = "https://([^"]+?)/?"',
        (ROOT / 'pyproject.toml').read_text(),
        flags=re.MULTILINE,
    )
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split('\n')
    texts = {
        o: (ROOT / o).read_text(errors='replace')
        for o in tracked
        if (ROOT / o).is_file() and not o.startswith('collab_pretrained/')
    }
    assert len(home) == 2 and [o for o, text in texts.items() if any(h in text for h in home)] == ['pyproject.toml']
