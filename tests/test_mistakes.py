"What is given in the place of a path, a table or a learner by mistake: each gives one of our errors, never a raw one."

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from types import NoneType
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch.distributed.checkpoint
from helpers import quiet

from collab_pretrained import all as ours
from collab_pretrained.all import (
    CollabDataLoaders,
    CollabLearner,
    apply_delta,
    collab_learner,
    importers,
    load_pretrained_keys,
    match_embeds,
    match_vocab,
    nearest,
    newest_unseen,
    planted_ratings,
)
from collab_pretrained.core import CollabError
from collab_pretrained.data import files
from collab_pretrained.scale import save_sharded
from collab_pretrained.serve import night, versions
from collab_pretrained.weights import folders, pairs, reading

RATINGS = planted_ratings(n_users=40, n_items=30, n_ratings=600)[['user', 'item', 'rating']]
LOADERS = CollabDataLoaders.from_df(RATINGS, seed=42)


@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    res = collab_learner(LOADERS, n_factors=4, path=tmp_path_factory.mktemp('learner'))
    quiet(res, 'fit_als', 1)
    res.save_pretrained('folder')
    return res


NO_TABLES = None, '', 5, [1], [], {}, pd.DataFrame(), RATINGS[['user']], RATINGS.drop(columns='item')
NO_PATHS = None, 5, ['x'], {}
NO_FOLDERS = *NO_PATHS, '', 'nowhere'


@pytest.mark.parametrize('x', NO_TABLES, ids=repr)
def test_no_table(learn, x):
    for f in (CollabDataLoaders.from_df, CollabDataLoaders.from_stream, learn.update, learn.fold_in, learn.predict):
        with pytest.raises((CollabError, FileNotFoundError)): f(x)  # '' can be a path that isn't there
    if x is None: return  # the learner's own ratings
    for f in (learn.evaluate, learn.adapt):
        with pytest.raises(CollabError): f(x)


@pytest.mark.parametrize('x', NO_FOLDERS, ids=repr)
def test_no_folder(learn, x):
    for f in (CollabLearner.from_pretrained, lambda x: learn.export_vectors('out', since=x or 5), importers.load_export,
              lambda x: collab_learner(LOADERS, pretrained=x), lambda x: apply_delta(learn.path/'folder', x or 5),
              lambda x: learn.load(x or 5), lambda x: learn.load_vocab(x, x), importers.read_vectors):
        with pytest.raises(CollabError): f(x)


@pytest.mark.parametrize('x', NO_PATHS, ids=repr)
def test_no_path(learn, x):
    for f in (learn.save, learn.save_pretrained, learn.export, learn.export_vectors,
              lambda x: learn.save_delta(x, learn.path/'folder'), lambda x: CollabDataLoaders.from_df(RATINGS, path=x)):
        with pytest.raises(CollabError, match='expected a path'): f(x)


@pytest.mark.parametrize('x', [None, '', 5, [1]], ids=repr)
def test_no_learner_loaders_or_features(learn, x):
    wgts, vocab = learn.model.state_dict(), dict(learn.vocab)
    for f in (collab_learner, nearest, learn.set_features, lambda x: CollabLearner(x, learn.model),
              lambda x: load_pretrained_keys(x, wgts), lambda x: newest_unseen(RATINGS, 'nobody', 2)):
        with pytest.raises(CollabError): f(x)
    if x is None: return  # the default of what follows
    for f in (lambda x: CollabLearner.from_pretrained(learn.path/'folder', x),
              lambda x: load_pretrained_keys(learn.model, wgts, keys=x),
              lambda x: match_embeds(wgts, vocab, vocab, keys=x), lambda x: match_embeds(wgts, vocab, vocab, unseen=x)):
        with pytest.raises(CollabError): f(x)


def test_a_torch_too_old_for_tables_in_pieces_is_said_to_be(learn, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.distributed.checkpoint, 'HuggingFaceStorageWriter', raising=False)
    with pytest.raises(ImportError, match='expected torch 2.13 or newer'): save_sharded(learn, tmp_path/'pieces')


# every parameter that is annotated with a kind of number, text or path, of every public function

PATH = 'a.parquet'
MODULES = {'night': night, 'versions': versions, 'files': files, 'folders': folders, 'pairs': pairs, 'reading': reading}
CALLS = {  # name -> what a call of it needs; methods of a learner begin with a dot, as names in a module do after it
    'night.night': {'model': 'folder', 'ratings': RATINGS}, 'night.forget': {'model': 'folder', 'users': [1]},
    'versions.rollback': {'model': 'folder'}, 'versions.history': {'model': 'folder'},
    'files.read_table': {'path': PATH}, 'files.read_ids': {'path': PATH}, 'files.write_table': {'df': RATINGS},
    'files.is_cut': {'path': PATH}, 'folders.read_folder': {}, 'pairs.read_pair': {'wgts_path': 'x.pth'},
    'pairs.find_pair': {}, 'reading.read_weights': {}, 'reading.read_opt': {}, 'reading.read_vocab': {},
    'planted_ratings': {}, 'BPR': {}, 'AnchorCallback': {}, 'RankMetric': {},
    'EmbeddingDotBias': {'n_factors': 2, 'n_users': 3, 'n_items': 4},
    'newest_unseen': {'late': RATINGS, 'user': 'user', 'n_seen': 2},
    'benchmark': {'ratings': RATINGS}, 'apply_delta': {'folder': 'folder', 'delta': 'delta'},
    'collab_learner': {'dls': LOADERS}, 'CollabDataLoaders.from_df': {'ratings': RATINGS},
    'CollabDataLoaders.from_stream': {'ratings': PATH}, 'CollabLearner.from_pretrained': {'folder': 'folder'},
    '.adapt': {'ratings': RATINGS}, '.add_ids': {'side': 'user', 'ids': [999]}, '.drop_ids': {'users': [1]},
    '.evaluate': {'ratings': RATINGS}, '.export': {}, '.fit_als': {}, '.fold_in': {'ratings': RATINGS},
    '.recommend': {}, '.freeze_rows': {}, '.save': {'file': 'x'}, '.save_delta': {'path': 'delta', 'since': 'folder'},
    '.save_pretrained': {'folder': 'x'}, '.side': {'name': 'user'}, '.similar_items': {'items': [1]},
    '.similar_users': {'users': [1]}, '.update': {'ratings': RATINGS}, '.load': {'file': 'x'},
    '.load_vocab': {'wgts_fname': 'x', 'vocab_fname': 'x'}, '.export_vectors': {'path': 'vectors'},
    '.start_from': {'pretrained': 'folder'}, 'match_embeds': {}, 'CollabLearner': {'dls': LOADERS}}
FASTAI = {'with_opt', 'strict', 'pickle_protocol', 'wd_bn_bias', 'train_bn', 'default_cbs', 'model_dir', 'device'}
KINDS = {int, float, bool, str, Path, Mapping, Iterable, Sequence, Callable}
# a bool is taken as well from what has a truth value, in most places
ODD = 'x', [1], {}, float('nan'), -1, 2**70, b'x', object()


def function_of(learn, name):
    head, _, tail = name.rpartition('.')
    if name.startswith('.'): return getattr(learn, tail)
    return getattr(MODULES.get(head) or getattr(ours, head), tail) if head else getattr(ours, name)


def cases():
    any_learner = collab_learner(LOADERS, n_factors=2)
    for name in CALLS:
        f = function_of(any_learner, name)
        for k, o in signature(f).parameters.items():
            kinds = set(get_args(o.annotation) or (o.annotation,)) - {NoneType}
            if k not in FASTAI and kinds <= KINDS and kinds != {bool}: yield name, k, kinds


@pytest.mark.parametrize('name,param,kinds', [*cases()], ids=lambda o: o if isinstance(o, str) else '')
def test_odd_values(learn, monkeypatch, name, param, kinds):
    monkeypatch.chdir(learn.path)
    again = CollabLearner.from_pretrained('folder')
    if param == 'delta': again.save_delta('delta', 'folder')
    old = {'old_wgts': learn.model.state_dict(), 'old_vocab': dict(learn.vocab)}
    of_learn = {'match_embeds': {**old, 'new_vocab': LOADERS.classes},
                'CollabLearner': {'model': learn.model, 'loss_func': learn.loss_func}}
    given = {**CALLS[name], **of_learn.get(name, {})}
    RATINGS.to_parquet(PATH)
    for odd in ODD:
        if isinstance(odd, str) and kinds & {str, Path}: continue
        with suppress(CollabError, FileNotFoundError): function_of(again, name)(**{**given, param: odd})


def test_number_out_of_range_or_of_another_kind():
    odd = [('n_users', -1), ('n_users', '5'), ('changed', 2), ('noise', float('nan')), ('n_factors', 0), ('seed', .5)]
    for param, value in odd:
        with pytest.raises(CollabError, match=param): planted_ratings(**{param: value})


@pytest.mark.parametrize('emb_szs', [5, {'user': 'x'}, {'item': 0}, {'item': True}, [4, 2.5]])
def test_odd_widths(emb_szs):
    with pytest.raises(CollabError, match='emb_szs'): collab_learner(LOADERS, use_nn=True, emb_szs=emb_szs)


def test_a_device_that_torch_does_not_know():
    with pytest.raises(CollabError, match="device='nope'"): CollabDataLoaders.from_df(RATINGS, device='nope')


def test_masked_values_are_missing():
    ids, vectors = np.arange(4), np.ones((4, 2))
    hide = np.array([False, True, False, False])
    with pytest.raises(CollabError, match='1 missing of 4, at positions 1'):
        importers.from_arrays(np.ma.masked_array(ids, hide), vectors, None, None)
    with pytest.raises(CollabError, match='the rows of 1; expected finite numbers'):
        importers.from_arrays(ids, np.ma.masked_array(vectors, np.stack([hide]*2, 1)), None, None)
    nothing_masked = np.ma.masked_array(ids, ~hide & hide)
    assert importers.from_arrays(nothing_masked, vectors, None, None).vocab[0].ids.tolist() == [0, 1, 2, 3]


NO_COLUMNS = (np.array([[3, 4]]), torch.tensor([[3, 4]]), pd.array([3, None]), pd.array(['a', None]), RATINGS[['user']])

@pytest.mark.parametrize('ids', NO_COLUMNS, ids=repr)
def test_ids_that_are_no_column(learn, ids):
    for f in (lambda x: learn.recommend(x, k=1), lambda x: learn.similar_users(x, k=1),
              lambda x: learn.drop_ids(users=x), lambda x: match_vocab(x, [1, 2]),
              lambda x: learn.recommend([1], candidates=x, k=1)):
        with pytest.raises(CollabError): f(ids)


def test_a_single_id_in_an_array(learn):
    for one in (np.array(3), torch.tensor(3), np.int32(3), 3.):
        assert learn.recommend(one, k=2).equals(learn.recommend(3, k=2))


def test_a_column_that_arrow_does_not_know():
    polars = pytest.importorskip('polars')
    table = polars.from_pandas(RATINGS).with_columns(polars.col('user').cast(polars.Int128))
    with pytest.raises(CollabError, match='Int128'): CollabDataLoaders.from_df(table)
