"""Saved models that were made to do harm: small files that ask for much memory, values that nothing can be made of,
files that are no files. Each gives one of our errors, in little time and memory."""

import json
import os
import re
import resource
import stat
import zipfile

import pytest
import torch
from fastcore.foundation import L

from collab_pretrained.core import CheckpointError, CollabError
from collab_pretrained.weights.folders import config_bytes, read_folder, save_folder
from collab_pretrained.weights.importers import read_vectors
from collab_pretrained.weights.pairs import read_pair, save_pair
from collab_pretrained.weights.reading import read_vocab, read_weights

VOCAB = {'user': ['#na#', 1, 2], 'item': ['#na#', 'a']}
WGTS = {'u_weight.weight': torch.ones(3, 4), 'i_weight.weight': torch.ones(2, 4), 'u_bias.weight': torch.ones(3, 1),
        'i_bias.weight': torch.ones(2, 1)}
NET = {'embeds.0.weight': torch.ones(3, 4), 'embeds.1.weight': torch.ones(2, 5), 'layers.0.0.weight': torch.ones(8, 9),
       'layers.0.0.bias': torch.ones(8), 'layers.1.0.weight': torch.ones(1, 8), 'layers.1.0.bias': torch.ones(1)}
DOT = {'kind': 'EmbeddingDotBias', 'n_factors': 4, 'y_range': [0, 5.5], 'counts': {'users': [3, 4], 'items': [7]},
       'loss': {'kind': 'bpr', 'min_rating': 4}, 'metrics': {'rmse': .9, 'x': None}, 'rating_name': 'rating'}
NETWORK = {'kind': 'EmbeddingNN', 'widths': [4, 5], 'layers': [8], 'use_bn': False, 'bn_final': False, 'act': 'ReLU'}


def changed(folder, **kw):
    "Put other values into the configuration, with a checksum that is right."
    path = folder/'config.json'
    path.write_bytes(config_bytes({**json.loads(path.read_bytes()), **kw}))
    return folder


HOSTILE = [('n_factors', o) for o in (10**8, 0, -1, 4.5, '4', [4], True, 10**400)]
HOSTILE += [('y_range', o) for o in ([5], [0, 1, 2], [5, 0], [0, 'a'], 'ab', {'a': 1, 'b': 2}, 7, [0, 10**400])]
HOSTILE += [
    ('counts', o)
    for o in (
        [1],
        {'users': [-1, 2]},
        {'users': [1]},
        {'users': ['a', 'b']},
        {'x': []},
        {'users': 3},
        {'items': [10**400]},
        {'items': [[1]]},
        {'items': [None]},
    )
]
HOSTILE += [('loss', o) for o in ('bpr', 5, {'kind': 7}, {}, {'kind': 'bpr', 'a': [1]}, ['bpr'])]
HOSTILE += [('columns', o) for o in (['a'], ['a', 'a'], ['a', 'b', 'c'], 'ab', [None, 1], {'a': 1}, [['a'], ['b']])]
HOSTILE += [('files', o) for o in ({}, [], {'model.safetensors': 'x'}, None)] + [('schema', 10**400), ('schema', '1')]
HOSTILE += [('metrics', [1]), ('kind', 7), ('rating_name', ['x']), ('vocab', 5)]


@pytest.mark.parametrize('key,value', HOSTILE)
def test_hostile_values_of_a_dot_product(tmp_path, key, value):
    save_folder(tmp_path/'m', WGTS, VOCAB, DOT)
    read_folder(tmp_path/'m')
    with pytest.raises(CheckpointError, match='/m/'): read_folder(changed(tmp_path/'m', **{key: value}))


@pytest.mark.parametrize(
    'key,value',
    [
        ('widths', [4, 10**8]),
        ('widths', [4]),
        ('layers', [10**8]),
        ('layers', [1] * 10**5),
        ('layers', []),
        ('layers', ['8']),
        ('use_bn', 'yes'),
        ('act', 5),
        ('bn_final', 1),
    ],
)
def test_hostile_values_of_a_network(tmp_path, key, value):
    save_folder(tmp_path/'m', NET, VOCAB, NETWORK)
    read_folder(tmp_path/'m')
    with pytest.raises(CheckpointError, match=key): read_folder(changed(tmp_path/'m', **{key: value}))


@pytest.mark.parametrize('kind,config', [('EmbeddingDotBias', {}), ('EmbeddingNN', {'widths': [4, 5]})])
def test_a_description_that_lacks_something(tmp_path, kind, config):
    save_folder(tmp_path/'m', WGTS, VOCAB, {'kind': kind, **config})
    with pytest.raises(CheckpointError, match='expected'): read_folder(tmp_path/'m')


def test_sizes_without_weights(tmp_path):
    save_folder(tmp_path/'m', {}, VOCAB, {'kind': 'EmbeddingDotBias', 'n_factors': 10**8})
    with pytest.raises(CheckpointError, match='n_factors'): read_folder(tmp_path/'m')


@pytest.mark.parametrize('raw', [b'['*900 + b']'*900, b'['*10**5, b'[' + b'9'*5000 + b']', b'{"a": ' + b'9'*5000 + b'}',
                                 b'{"schema": 1, "x": ' + b'['*900 + b']'*900 + b'}'])
@pytest.mark.parametrize('name', ['config.json', 'vocab.json'])
def test_deep_and_long_json(tmp_path, name, raw):
    save_folder(tmp_path/'m', WGTS, VOCAB, DOT)
    (tmp_path/'m'/name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=name): read_folder(tmp_path/'m')
    with pytest.raises(CheckpointError, match=name): read_vocab(tmp_path/'m'/name)


# small files that ask for gigabytes

class Call:
    "A pickle of it calls `f(*args)`."
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call


def peak_bytes(f):
    "How much more memory the process has had at most after `f`, which must raise one of our errors."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CollabError): f()
    return 1024*(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


GREEDY = {
    'bytearray': Call(bytearray, 1_850_000_000),
    'tensor': Call(torch.DoubleTensor, 10**9),
    'set': Call(set, (1, 2)),
    'view made whole': Call(
        torch._utils._rebuild_device_tensor_from_cpu_tensor, torch.ones(1).expand(10**9), torch.float64, 'cpu', False
    ),
}


@pytest.mark.parametrize('greedy', GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize('new_format', [True, False])
def test_greedy_weights(tmp_path, greedy, new_format):
    for x in ({**WGTS, 'x': greedy}, {'model': WGTS, 'opt': [greedy]}):
        torch.save(x, tmp_path/'x.pth', _use_new_zipfile_serialization=new_format)
        assert (tmp_path/'x.pth').stat().st_size < 10**5
        assert peak_bytes(lambda: read_weights(tmp_path/'x.pth')) < 10**8


def test_a_storage_that_is_larger_than_its_file(tmp_path):
    class Made:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Call(torch.FloatStorage, 10**8),
                0,
                (10**4, 10**4),
                (10**4, 1),
                False,
                {},
            )

    torch.save({**WGTS, 'x': Made()}, tmp_path/'x.pth')
    assert peak_bytes(lambda: read_weights(tmp_path/'x.pth')) < 10**8


def nested(kind, n=40):
    "A list that holds the one before twice, `n` times over: 2**`n` values in a few bytes."
    x = kind([1])
    for _ in range(n): x = kind([x, x])
    return x


ONE = torch.ones(100_000)
REPEATED = {**{o.__name__: {'model': WGTS, 'opt': nested(o)} for o in (list, tuple, L)},
            'rows': {**WGTS, **{f'x{i}': ONE.view(-1) for i in range(100)}},
            'moments': {'model': WGTS, 'opt': [ONE.view(-1) for _ in range(100)]}}


@pytest.mark.parametrize('state', REPEATED.values(), ids=REPEATED)
def test_a_file_that_holds_one_thing_many_times_over(tmp_path, state):
    torch.save(state, tmp_path/'x.pth')
    with pytest.raises(CheckpointError, match='many times over'): read_weights(tmp_path/'x.pth')


def test_a_key_whose_hash_takes_for_ever(tmp_path):
    raw = b'\x80\x02}(K\x01\x85q\x00' + b''.join(bytes([*b'h', i, *b'\x86q', i + 1]) for i in range(40)) + b'K\x01u.'
    (tmp_path/'x_vocab.pkl').write_bytes(raw)
    with pytest.raises(CheckpointError, match='unhashable'): read_vocab(tmp_path/'x_vocab.pkl')
    with zipfile.ZipFile(tmp_path/'x.pth', 'w') as new: new.writestr('x/data.pkl', raw)
    with pytest.raises(CheckpointError, match='unhashable'): read_weights(tmp_path/'x.pth')


@pytest.mark.parametrize('y_range', [[5, 0], [1], 10**5000, 'x'], ids=['reversed', 'one', 'huge', 'text'])
def test_hostile_facts_of_a_pair(tmp_path, y_range):
    save_pair(tmp_path/'x', WGTS, VOCAB, meta={'y_range': (0, 5)})
    state = torch.load(tmp_path/'x.pth', weights_only=True)
    state._metadata['']['collab_pretrained']['y_range'] = y_range
    torch.save(state, tmp_path/'x.pth')
    with pytest.raises(CheckpointError, match='y_range|damaged'): read_pair(tmp_path/'x.pth')


# what is no file, or can't be read

READERS = [read_weights, read_vocab, read_pair, read_vectors]


@pytest.mark.parametrize('read', READERS)
def test_a_pipe_a_device_a_folder(tmp_path, read):
    os.mkfifo(tmp_path/'x.pth')
    for path in (tmp_path/'x.pth', '/dev/zero', tmp_path/'x.pth/y'):
        with pytest.raises(CheckpointError, match=re.escape(str(path))): read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
@pytest.mark.parametrize('read', READERS)
def test_a_file_of_someone_else(tmp_path, read):
    (tmp_path/'x.pth').write_bytes(b'x')
    (tmp_path/'x.pth').chmod(0)
    with pytest.raises(CheckpointError, match='not readable'): read(tmp_path/'x.pth')


def test_a_library_that_is_missing_is_not_damage(tmp_path, monkeypatch):
    save_pair(tmp_path/'x', WGTS, VOCAB)
    for error in (ImportError('no such library'), MemoryError()):
        def fails(*args, error=error, **kw): raise error
        monkeypatch.setattr(torch, 'load', fails)
        with pytest.raises(type(error)): read_weights(tmp_path/'x.pth')


# links

@pytest.mark.parametrize('kind', ['pair', 'folder'])
def test_a_save_over_links_keeps_them_and_the_modes(tmp_path, kind):
    def save(k):
        wgts = {name: k*t for name, t in WGTS.items()}
        save_pair(tmp_path/'m/x', wgts, VOCAB) if kind == 'pair' else save_folder(tmp_path/'m', wgts, VOCAB)

    def read():
        return (read_pair(tmp_path / 'm/x.pth') if kind == 'pair' else read_folder(tmp_path / 'm'))[0][
            'u_weight.weight'
        ][0, 0]

    save(1)
    (tmp_path/'store').mkdir()
    names = sorted(o.name for o in (tmp_path/'m').iterdir())
    for o in list((tmp_path/'m').iterdir()):
        o.rename(tmp_path/'store'/o.name)
        o.symlink_to(tmp_path/'store'/o.name)
        (tmp_path/'store'/o.name).chmod(0o640)
    save(2)
    assert read() == 2
    assert (
        sorted(o.name for o in (tmp_path / 'm').iterdir())
        == sorted(o.name for o in (tmp_path / 'store').iterdir())
        == names
    )
    for o in names: assert (tmp_path/'m'/o).is_symlink() and stat.S_IMODE((tmp_path/'store'/o).stat().st_mode) == 0o640
