"What is given in the place of a path, a table or a learner by mistake: each gives one of our errors, never a raw one."

import pandas as pd
import pytest
import torch.distributed.checkpoint
from helpers import quiet

from collab_pretrained.all import (
    CollabDataLoaders,
    CollabLearner,
    apply_delta,
    collab_learner,
    importers,
    load_pretrained_keys,
    match_embeds,
    nearest,
    newest_unseen,
    planted_ratings,
)
from collab_pretrained.core import CollabError
from collab_pretrained.scale import save_sharded

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
