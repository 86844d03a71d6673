"What a saved folder tells the next night: how tables are read, and what was seen, for every kind of model."
import datetime
import uuid

import numpy as np
import pandas as pd
import pytest
from helpers import quiet

from collab_pretrained.all import CollabDataLoaders, CollabLearner, collab_learner
from collab_pretrained.core import CollabError, CollabWarning

KINDS = {'dot': {}, 'net': dict(use_nn=True, layers=[8]), 'ranking net': dict(use_nn=True, layers=[8], loss='bpr'),
         'ials': dict(loss='ials'), 'softmax': dict(loss='softmax')}


def ratings(n=300):
    "Ratings with times and weights, and users in capitals."
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'user': [f'U{o}' for o in rng.integers(1, 21, n)], 'item': rng.integers(1, 31, n),
                       'rating': rng.integers(1, 11, n)/2, 'when': np.arange(n), 'w': 1.5})
    return df.drop_duplicates(['user', 'item'])


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', KINDS)
def test_tonight_is_read_as_the_first_table_was(kind, tmp_path):
    "Casts, times and weights hold in a model out of its folder; seen items stay away; one new rating trains a network."
    dls = CollabDataLoaders.from_df(ratings(), id_cast={'user': 'lower'}, time_name='when', weight_name='w', seed=1)
    learn = collab_learner(dls, 4, **KINDS[kind])
    with learn.no_bar(), learn.no_logging(): learn.fit_als(1) if kind == 'ials' else learn.fit(1)
    learn.save_pretrained(tmp_path/'a')
    again = CollabLearner.from_pretrained(tmp_path/'a')
    twice = {'user': ['U777', 'u777'], 'item': [2, 2], 'rating': [1., 5.], 'when': [9, 8], 'w': [2., 1.]}
    tonight = pd.DataFrame(twice)
    report = quiet(again, 'update', tonight)
    assert report.n_new == 1 and again.side('user').vocab.ids[-1] == 'u777'
    assert again.dls.train_ds.tensors[1].tolist() == [[1.]]  # the later one of both, wherever it stands
    assert again.dls.train_ds.weights.tolist() == [2.]
    again.save_pretrained(tmp_path/'b')
    lists = CollabLearner.from_pretrained(tmp_path/'b').recommend(k=30)
    seen = pd.concat([ratings(), tonight]).assign(user=lambda o: o.user.str.lower())
    assert not len(lists.merge(seen, on=['user', 'item']))


def test_a_cast_that_cant_be_saved_is_said(tmp_path):
    dls = CollabDataLoaders.from_df(ratings(), id_cast={'user': lambda o: o[1:]}, seed=1)
    collab_learner(dls, 2).save_pretrained(tmp_path/'a')
    with pytest.warns(CollabWarning, match='a function .`id_cast`. that was not saved'):
        CollabLearner.from_pretrained(tmp_path/'a')
    assert CollabLearner.from_pretrained(tmp_path/'a', dls=dls).dls is dls


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', [lambda o: uuid.UUID(int=o), lambda o: datetime.date(2026, 1, 1 + o % 28), float])
def test_ids_may_be_asked_for_as_they_were_given(make):
    "A UUID, a day or 7.0 in the table is the same id in `fold_in`, `recommend` and `drop_ids`."
    df = ratings()[['user', 'item', 'rating']].assign(user=lambda o: [make(int(u[1:])) for u in o.user])
    learn = collab_learner(CollabDataLoaders.from_df(df, seed=1), 4)
    quiet(learn, 'fit_als', 1)
    one, n = df.user.iloc[0], len(learn.side('user').vocab)
    assert len(learn.fold_in(df, ids=[one]).ids) == 1
    assert len(learn.recommend([one], k=2)) == 2
    learn.drop_ids(users=[one])
    assert len(learn.side('user').vocab) == n - 1


def test_ratings_on_another_scale_are_said():
    df = ratings()[['user', 'item', 'rating']]
    bounded = collab_learner(CollabDataLoaders.from_df(df, seed=1), 4, y_range=(0, 5.5))
    linear = collab_learner(CollabDataLoaders.from_df(df, seed=1), 4)
    for o in (bounded, linear): quiet(o, 'fit_als', 1)
    percent = df[:20].assign(user='new', rating=lambda o: o.rating*20)
    for learn in (bounded, linear):
        for call in (learn.fold_in, lambda o, learn=learn: learn.recommend(ratings=o), learn.update):
            with pytest.warns(CollabWarning, match='20 of 20 ratings lie outside|1[0-9] of 20 ratings lie outside'):
                call(percent)
    lists = linear.recommend(k=3, exclude_seen=False)
    said = linear.get_preds(dl=linear.dls.test_dl(lists[['user', 'item']]))[0]
    np.testing.assert_allclose(lists.score, said, rtol=1e-5)  # clipped to the range of ratings as predictions are


@pytest.mark.parametrize('kwargs', [
    dict(n_factors='5'), dict(n_factors=0), dict(n_factors=-1), dict(n_factors=1.5), dict(seed='x'), dict(seed=1.5),
    dict(y_range=('a', 'b')), dict(y_range=(0, float('inf'))), dict(use_nn=True, layers='x'),
    dict(use_nn=True, layers=[0]), dict(use_nn=True, layers=5), dict(na_dropout='x')])
def test_arguments_that_mean_nothing(kwargs):
    dls = CollabDataLoaders.from_df(ratings(), seed=1)
    with pytest.raises(CollabError, match='expected'): collab_learner(dls, **kwargs)


@pytest.mark.parametrize('kwargs', [
    dict(lr='x'), dict(lr=-1.), dict(lr=float('nan')), dict(epochs='x'), dict(epochs=-1), dict(epochs=1.5),
    dict(rounds='x'), dict(rounds=-1), dict(replay='x'), dict(replay=2), dict(seed='x'), dict(valid_pct='x')])
def test_updates_that_mean_nothing_leave_the_model_as_it_was(kwargs):
    learn = collab_learner(CollabDataLoaders.from_df(ratings(), seed=1), 4)
    quiet(learn, 'fit_als', 1)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(CollabError, match='expected'):
        learn.update(ratings()[:5].assign(user='new'), **{'epochs': 1, **kwargs})
    for table in (None, [1, 2], {'user': [1]}, 'night.csv'):
        for call in (learn.update, learn.fold_in, learn.dls.test_dl):
            with pytest.raises(CollabError, match='expected a table'): call(table)
    assert all(v.equal(before[k]) for k, v in learn.model.state_dict().items())
