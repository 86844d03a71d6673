"""What only processes can show of `collab_pretrained.weights`: kills, savers at the same time, full and read-only
folders, damaged files."""

import os
import pickle
import random
import re
import resource
import signal
import time
import tracemalloc
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from collab_pretrained.core import CheckpointError, CheckpointNotFoundError, CollabError, SaveError
from collab_pretrained.weights import folders, pairs, reading
from collab_pretrained.weights.folders import read_folder, save_folder
from collab_pretrained.weights.pairs import read_pair, save_pair
from collab_pretrained.weights.reading import read_opt, read_vocab, read_weights

SIZES = {'user': 40, 'item': 30}

def model(k):
    "Weights and vocabulary number `k`, in which each row of each table holds its own id; all of one size."
    ids = {col: [k*1000 + row for row in range(1, n)] for col, n in SIZES.items()}
    rows = {col: torch.tensor([k*1000., *o])[:, None] for col, o in ids.items()}
    return (
        {
            'u_weight.weight': rows['user'].repeat(1, 50),
            'i_weight.weight': rows['item'].repeat(1, 50),
            'u_bias.weight': rows['user'],
            'i_bias.weight': rows['item'],
        },
        {col: ['#na#', *o] for col, o in ids.items()},
    )


def number(wgts, vocab):
    "The number of the one model that these are, after a look at every row."
    k = int(wgts['u_weight.weight'][0, 0])//1000
    for name, col in (('u_weight', 'user'), ('i_weight', 'item'), ('u_bias', 'user'), ('i_bias', 'item')):
        t = wgts[f'{name}.weight']
        assert t.shape == (SIZES[col], 50 if 'weight' in name else 1)
        assert (t == torch.tensor([k*1000., *vocab[col].ids])[:, None]).all()
    return k

def tables(k): return {'seen': {'user.n': torch.full((SIZES['user'],), k, dtype=torch.int32)}}

class Pair:
    "Both formats look alike to the tests: `save` and `which` take the path of the folder that holds the files."
    files = ['x.pth', 'x_vocab.pkl']
    def save(folder, k): save_pair(folder/'x', *model(k), tables=tables(k))
    def which(folder):
        wgts, vocab, facts = read_pair(folder/'x.pth')
        assert facts['tables']['seen']['user.n'].tolist() == [k := number(wgts, vocab)]*SIZES['user']
        return k

class Folder:
    files = ['config.json', 'model.safetensors', 'seen.safetensors', 'vocab.json']

    def save(folder, k):
        save_folder(folder, *model(k), {'k': k, 'counts': {'users': list(range(SIZES['user'] - 1))}}, tables(k))

    def which(folder):
        *saved, config = read_folder(folder)
        assert config['tables']['seen']['user.n'].tolist() == [config['k']]*SIZES['user']
        assert config['k'] == number(*saved) and config['counts'] == {'users': list(range(SIZES['user'] - 1))}
        return config['k']

formats = pytest.mark.parametrize('form', [Pair, Folder])

@contextmanager
def child(work):
    """A process of its own that runs `work` and exits, with status 1 where it raises; killed at the end, if it is still
    there."""
    pid = os.fork()
    if pid == 0:
        try: work()
        except BaseException: os._exit(1)
        os._exit(0)
    try: yield pid
    finally:
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
        try: os.waitpid(pid, 0)
        except ChildProcessError: pass

def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def save_forever(form, folder, *numbers):
    while True:
        for k in numbers: form.save(folder, k)

@formats
def test_kills(tmp_path, form, times):
    rng, seen, start = random.Random(0), [], time.time()
    for _ in range(5): form.save(tmp_path, 1)
    save_s = (time.time() - start)/5
    while len(seen) < times(200) or len(set(seen)) < 2 and len(seen) < 500:
        with child(lambda: save_forever(form, tmp_path, 1, 2)): time.sleep(rng.uniform(0, (4 + len(seen)/20)*save_s))
        seen.append(form.which(tmp_path))
    assert set(seen) == {1, 2}
    form.save(tmp_path, 3)
    assert form.which(tmp_path) == 3
    assert sorted(os.listdir(tmp_path)) == form.files

@formats
@pytest.mark.parametrize('call', ['fsync', 'replace', 'unlink'])
@pytest.mark.parametrize('first', [True, False])
def test_a_kill_at_every_step(tmp_path, form, call, first):
    """The process ends at its n-th call, for every n; before the save that decides there is the old checkpoint (or
    none), from it on the new one."""
    done, results = False, []
    for n in range(30):
        for o in tmp_path.iterdir(): o.unlink()
        if not first:  # over one whose own save had no time for its last step
            form.save(tmp_path, 1)
            with child(lambda: dying_save(form, tmp_path, 2, 'replace', 2 * len(form.files) - 2)) as pid:
                assert status(pid) == 9
            assert form.which(tmp_path) == 2 and len(list(tmp_path.iterdir())) > len(form.files)
        with child(partial(dying_save, form, tmp_path, 3, call, n)) as pid: done = status(pid) == 0
        try: results.append(form.which(tmp_path))
        except CheckpointNotFoundError: results.append(None)
        if done: break
    old = None if first else 2
    assert done and results == sorted(results, key=lambda o: o == 3) and set(results) <= {old, 3} and results[-1] == 3
    assert sorted(os.listdir(tmp_path)) == form.files

def dying_save(form, folder, k, call, n):
    "Save, and die instead of the n-th `os.<call>`."
    calls, keep = iter(range(100)), getattr(os, call)
    def die(*args, **kw): return os._exit(9) if next(calls) == n else keep(*args, **kw)
    setattr(os, call, die)
    form.save(folder, k)

@formats
def test_two_savers_and_a_reader(tmp_path, form):
    form.save(tmp_path, 1)
    with child(lambda: save_forever(form, tmp_path, 1, 2)), child(lambda: save_forever(form, tmp_path, 3, 4)):
        seen, end = set(), time.time() + 20
        while len(seen) < 4 and time.time() < end: seen |= {form.which(tmp_path) for _ in range(50)}
    assert seen == {1, 2, 3, 4}
    form.save(tmp_path, 5)
    assert form.which(tmp_path) == 5 and sorted(os.listdir(tmp_path)) == form.files

@formats
def test_a_rename_between_two_looks(tmp_path, form, monkeypatch):
    "A saver renames the pending file just when a reader that found it wants to open it."
    def dies_before_the_last_renames():
        pairs.rename_synced = lambda old, new: os._exit(7) if old.name.endswith('.pending') else os.replace(old, new)
        form.save(tmp_path, 2)
    form.save(tmp_path, 1)
    with child(dies_before_the_last_renames) as pid: assert status(pid) == 7
    assert any(o.name.endswith('.pending') for o in tmp_path.iterdir())
    real, renamed = reading.file_content, []
    def content(path, *args):
        if str(path).endswith('.pending') and Path(path).exists():
            renamed.append(path)
            os.replace(path, re.sub(r'\.[0-9a-f]+\.pending$', '', str(path)))
        return real(path, *args)
    for module in (reading, folders): monkeypatch.setattr(module, 'file_content', content)
    assert form.which(tmp_path) == 2 and renamed

def contents(folder): return {o.name: o.read_bytes() for o in folder.iterdir()}

@formats
def test_full_disk(tmp_path, form):
    "The system refuses to let a file grow further, at any size."
    form.save(tmp_path, 1)
    before = contents(tmp_path)
    def limited(n):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
        try: form.save(tmp_path, 2)
        except SaveError as e: os._exit(7 if str(tmp_path) in str(e) else 1)
    for n in (0, 100, 300, 1000, 5000, max(map(len, before.values())) - 1):
        with child(partial(limited, n)) as pid: assert status(pid) == 7
        assert contents(tmp_path) == before
    with child(lambda: limited(10**6)) as pid: assert status(pid) == 0
    assert form.which(tmp_path) == 2

@formats
def test_read_only_folder(tmp_path, form):
    folder = tmp_path/'models'
    folder.mkdir()
    form.save(folder, 1)
    def unprivileged():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        assert form.which(folder) == 1
        try: form.save(folder, 2)
        except SaveError as e: os._exit(7 if str(folder) in str(e) else 1)

    for o in (tmp_path, *(p for p in tmp_path.parents if p.name.startswith(('pytest-', 'popen-')))):
        o.chmod(0o755)  # pytest's own folders, one more under xdist
    folder.chmod(0o555)
    with child(unprivileged) as pid: assert status(pid) == 7
    folder.chmod(0o755)
    assert form.which(folder) == 1 and sorted(os.listdir(folder)) == form.files

# damaged files

def mutated(raw, other, rng):
    "`raw` with one kind of damage."
    kind, at, n = rng.integers(7), int(rng.integers(len(raw))), int(rng.integers(1, 20))
    if kind == 0: return raw[:at]
    if kind == 1: return raw[:at] + rng.bytes(n) + raw[at:]
    if kind == 2: return raw[:at] + raw[at+n:]
    if kind == 3: return raw[:at] + other[at:]
    res = bytearray(raw)
    for at in rng.integers(len(raw), size=1 if kind < 6 else n): res[at] ^= 1 << int(rng.integers(8))
    return bytes(res)

def outcome(read):
    "What `read` gives; 'refused' where it raises one of our errors, within a second."
    start = time.process_time()
    try: res = read()
    except CollabError as e:
        assert '/test_' in str(e), e
        res = 'refused'
    assert time.process_time() - start < 1
    return res

@pytest.fixture
def small(monkeypatch):
    "Files of a few kB, of which every part gets hit."
    monkeypatch.setitem(SIZES, 'user', 6)
    monkeypatch.setitem(SIZES, 'item', 5)

@pytest.mark.parametrize('form,name', [(form, name) for form in (Pair, Folder) for name in form.files])
def test_fuzz(tmp_path, small, form, name, times):
    "A damaged file is refused, or it still is what was saved."
    rng, other = np.random.default_rng(0), tmp_path/'other'
    for k, folder in enumerate((tmp_path, other), 1):
        folder.mkdir(exist_ok=True)
        form.save(folder, k)
    path, listed = tmp_path/name, sorted(os.listdir(tmp_path))
    raw, foreign = path.read_bytes(), (other/name).read_bytes()
    results = []
    for _ in range(times(3000)):
        path.write_bytes(mutated(raw, foreign, rng))
        results.append(outcome(lambda: form.which(tmp_path)))
    assert set(results) <= {'refused', 1} and results.count('refused') > len(results)/2
    path.write_bytes(foreign)
    assert outcome(lambda: form.which(tmp_path)) == 'refused'
    path.unlink()
    with pytest.raises(CheckpointNotFoundError, match=name): form.which(tmp_path)
    assert sorted([*os.listdir(tmp_path), name]) == listed

def test_fuzz_with_optimizer(tmp_path, small, times):
    rng, path = np.random.default_rng(3), tmp_path/'x.pth'
    state = {'state': [{'step': 1, 'avg': torch.ones(3)}], 'hypers': [{'lr': .1}]}
    save_pair(tmp_path/'x', *model(1), opt_state=state)
    raw = path.read_bytes()
    for _ in range(times(1500)):
        path.write_bytes(mutated(raw, bytes(len(raw)), rng))
        res = outcome(lambda: read_opt(path))
        assert res == 'refused' or str(res) == str(state)

def test_a_record_marked_as_a_folder(tmp_path, small):
    "torch reads nothing of it, and gives whatever the memory held."
    Pair.save(tmp_path, 1)
    path, raw = tmp_path/'x.pth', bytearray((tmp_path/'x.pth').read_bytes())
    entries = [m.start() for m in re.finditer(rb'PK\x01\x02', raw)]
    assert len(entries) > 4
    for at in entries:
        damaged = raw.copy()
        damaged[at+38] ^= 0x10  # the first byte of the external attributes
        path.write_bytes(damaged)
        assert outcome(lambda: read_weights(path)) == 'refused'

def test_a_few_bytes_that_ask_for_a_gigabyte(tmp_path):
    path = tmp_path/'x_vocab.pkl'
    path.write_bytes(b'\x80\x05\x96' + (10**9).to_bytes(8, 'little') + b'a.')
    tracemalloc.start()
    try:
        assert outcome(lambda: read_vocab(path)) == 'refused'
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally: tracemalloc.stop()

FOREIGN = {
    'numpy': lambda v: [np.array(o, dtype=object) for o in v.values()],
    'ids to rows': lambda v: [{o: row for row, o in enumerate(names)} for names in v.values()],
    'protocol 2': lambda v: v,
}
@pytest.mark.parametrize('form', FOREIGN)
def test_fuzz_foreign_vocab(tmp_path, small, form, times):
    """Vocabularies from elsewhere carry no fingerprint: some damage gives other ids, and none may give anything but
    ids, or our errors."""
    rng, path, vocab = np.random.default_rng(1), tmp_path/'x_vocab.pkl', model(1)[1]
    raw = pickle.dumps(FOREIGN[form](vocab), 2 if '2' in form else 4)
    for _ in range(times(1500)):
        path.write_bytes(mutated(raw, bytes(len(raw)), rng))
        res = outcome(lambda: read_vocab(path))
        if res == 'refused': continue
        sides = list(res.values()) if isinstance(res, dict) else res
        assert len(sides) == 2 and {type(o) for v in sides for o in v} <= {int, str}

@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_fuzz_foreign_weights(tmp_path, small, kind, times):
    rng, path = np.random.default_rng(2), tmp_path/'x.weights'
    if kind == 'safetensors':
        Folder.save(tmp_path, 1)
        raw = (tmp_path / 'model.safetensors').read_bytes()
    else:
        torch.save(
            {'model': model(1)[0], 'opt': {'hypers': [{'lr': 0.1}]}}, path, _use_new_zipfile_serialization=kind == 'zip'
        )
        raw = path.read_bytes()
    for _ in range(times(1500)):
        path.write_bytes(mutated(raw, bytes(len(raw)), rng))
        res = outcome(lambda: read_weights(path))
        if res != 'refused': assert all(isinstance(t, torch.Tensor) and t.isfinite().all() for t in res.values())

# code in files

class Call:
    "A pickle of it calls `f(*args)` when it is read without care."
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call

def attacks(mark):
    import builtins
    import subprocess
    yield Call(os.system, f'touch {mark}')
    yield Call(builtins.eval, f'open({str(mark)!r}, "w")')
    yield Call(builtins.exec, f'open({str(mark)!r}, "w")')
    yield Call(open, str(mark), 'w')
    yield Call(subprocess.Popen, ['touch', str(mark)])
    yield Call(getattr, 'x', 'upper')
    yield Call(np.savetxt, str(mark), [1])
    yield Call(torch.save, {}, str(mark))

@pytest.mark.parametrize('k', range(8))
def test_nothing_runs(tmp_path, k):
    mark, path = tmp_path/'ran', tmp_path/'x.pth'
    attack = list(attacks(mark))[k]
    f = attack.call[0]
    wgts, vocab = model(1)
    for bad in (
        attack,
        {**wgts, 'a': attack},
        {'model': wgts, 'opt': attack},
        {'model': wgts, 'opt': [{'a': (attack,)}]},
    ):
        for new_format in (True, False):
            torch.save(bad, path, _use_new_zipfile_serialization=new_format)
            for read in (read_weights, read_opt, read_pair):
                with pytest.raises(CheckpointError, match=f'x.pth: refused, since it asks to run .*{f.__name__}'):
                    read(path)
    for bad in (attack, [attack, [1]], [[attack], [1]], {'user': {attack: 1}, 'item': [1]}, {**vocab, 'more': attack}):
        for protocol in range(6):
            path.write_bytes(pickle.dumps(bad, protocol))
            with pytest.raises(CheckpointError, match=f'x.pth: refused, since it asks to make .*{f.__name__}'):
                read_vocab(path)
    assert not mark.exists()

def test_bombs(tmp_path):
    "A few bytes that ask for gigabytes."
    path = tmp_path/'x_vocab.pkl'
    deep = (
        b'\x80\x04'
        + b']\x94'
        + b''.join(b']\x94(h' + bytes([n]) + b'h' + bytes([n]) + b'e' for n in range(60))
        + b'h\x3b\x86.'
    )
    for raw in (
        b'\x80\x04r\xff\xff\xff\x7f.',
        b'\x80\x04]r\xff\xff\xff\xff.',
        b'\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.',
        b'\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.',
        b'\x80\x04' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.',
        b'[' * 10**6,
        deep,
        b'\x80\x04]\x8b\xff\xff\xff\x7f.',
    ):
        path.write_bytes(raw)
        assert outcome(lambda: read_vocab(path)) == 'refused'
    for length in (10**8, 2**40, 2**63, 2**64 - 1):   # of a header that isn't there
        path.write_bytes(length.to_bytes(8, 'little') + b'{"a":' + bytes(100))
        assert outcome(lambda: read_weights(path)) == 'refused'

# checkpoints of every schema so far: they must load in every later version

FIXTURES = Path(__file__).parent/'fixtures'/'schema_1'
USERS, ITEMS = ['#na#', 2**60 + 1, -7, 3], ['#na#', 'é☃', '']

@pytest.mark.parametrize('kind', ['pair', 'folder'])
def test_schema_1(kind):
    wgts, vocab, facts = read_pair(FIXTURES/'pair.pth') if kind == 'pair' else read_folder(FIXTURES/'folder')
    assert {k: (v.dtype, v.tolist()) for k, v in wgts.items()} == {
        'u_weight.weight': (torch.float32, [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]),
        'i_weight.weight': (torch.float32, [[0.0, -0.5], [-1.0, -1.5], [-2.0, -2.5]]),
        'u_bias.weight': (torch.float32, [[0.0], [0.25], [0.5], [0.75]]),
        'i_bias.weight': (torch.float32, [[0.0], [-0.25], [-0.5]]),
    }
    assert {k: list(v) for k, v in vocab.items()} == {'user': USERS, 'item': ITEMS}
    assert list(facts['y_range']) == [0.5, 5.5] and facts['columns'] == ['user', 'item']
    if kind == 'pair': assert read_opt(FIXTURES/'pair.pth') == {'state': [], 'hypers': [{'lr': .1}]}
    else: assert facts['schema'] == 1 and facts['counts'] == {'users': [5, 1, 2], 'items': [4, 4]}
