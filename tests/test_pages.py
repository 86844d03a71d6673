"""What a reader sees of a page runs when it is copied: its visible code, in order, in a fresh process and an empty folder."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from pages import script_of, undefined  # noqa: E402

NBS = ROOT/'nbs'
READ_FIRST = [NBS/'index.ipynb', *sorted((NBS/'tutorials').glob('*.ipynb'))]
REFERENCE = sorted(NBS.glob('[0-9]*.ipynb'))

# Reference pages whose visible code needs what a hidden cell defines: the list must only get shorter
NOT_YET = set()
# Visible cells of reference pages that call a name with a leading underscore: must only get lower
PRIVATE_CALLS = 0


def readme_script(): return '\n'.join(re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(), flags=re.DOTALL))


def runs(script, folder):
    (folder/'benchmarks').symlink_to(ROOT/'benchmarks')  # a checkout is at hand
    (folder/'page.py').write_text("import matplotlib; matplotlib.use('agg')\n" + script)
    done = subprocess.run([sys.executable, '-W', 'ignore', 'page.py'], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]


@pytest.mark.parametrize('nb', READ_FIRST, ids=lambda o: o.stem)
def test_copied_code_of_tutorials_runs(nb, tmp_path): runs(script_of(nb), tmp_path)


def test_copied_code_of_readme_runs(tmp_path): runs(readme_script(), tmp_path)


def test_visible_code_of_reference_pages_defines_what_it_uses():
    missing = {nb.stem: names for nb in REFERENCE if (names := sorted(undefined(script_of(nb))))}
    assert set(missing) <= NOT_YET, {k: v for k, v in missing.items() if k not in NOT_YET}
    assert NOT_YET <= set(missing), 'these are converted now: take them off the list'


@pytest.mark.parametrize('nb', [o for o in REFERENCE if o.stem not in NOT_YET], ids=lambda o: o.stem)
def test_copied_code_of_reference_pages_runs(nb, tmp_path, request):
    if not request.config.getoption('nightly'): pytest.skip('the notebook itself is run in each `make test`; the copied code in `make nightly`')
    runs(script_of(nb), tmp_path)
