"What ids are, as a part of the prior: encodings, the regression behind it, and features that travel with a model."
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from helpers import quiet

from collab_pretrained.all import (
    CollabDataLoaders,
    CollabLearner,
    RatingsError,
    VocabError,
    collab_learner,
    planted_ratings,
)
from collab_pretrained.cli import main
from collab_pretrained.core import CheckpointError
from collab_pretrained.data.features import Encoding, fit_encoding
from collab_pretrained.models.als import fit_rounds
from collab_pretrained.models.posterior import predicted, ridge_effects, start, with_features

pytestmark = pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')
RATINGS = planted_ratings(n_users=80, n_items=60, n_ratings=3000, seed=1)
EARLY, LATE = (RATINGS[RATINGS.period == o][['user', 'item', 'rating']] for o in ('early', 'late'))


def films(ids=range(1, 80), noise=0):
    "What items are: their mean rating in truth, a category of it, and columns that say nothing."
    rng = np.random.default_rng(0)
    mean = RATINGS.groupby('item').truth.mean().reindex(range(1, 80)).fillna(3.)
    frame = pd.DataFrame({'quality': mean, 'kind': pd.Categorical((mean*2).round().astype(int).astype(str))})
    for k in range(noise): frame[f'noise{k}'] = rng.normal(size=len(frame))
    return frame.loc[list(ids)]


def solved(df=EARLY, features=None, **kwargs):
    learn = collab_learner(CollabDataLoaders.from_df(df, seed=1, valid_pct=.01), n_factors=4, seed=0,
                           features=features and {'item': features()}, **kwargs)
    return quiet(learn, 'fit_als', 6)


def from_folder(folder): return CollabLearner.from_pretrained(folder)


def same(a, b):
    "Whether two learners know the same, to the bit."
    sides = [(a.posterior.side(o)[0], b.posterior.side(o)[0]) for o in ('user', 'item')]
    return all(torch.equal(getattr(p, k), getattr(q, k)) for p, q in sides for k in vars(p))


def test_regression_is_that_of_a_dense_reference():
    rng = torch.Generator().manual_seed(0)
    n, p, k = 60, 5, 3
    features, rows = torch.randn(n, p, generator=rng), torch.randn(n, k, generator=rng) + 2
    weight, spread, relevance = torch.rand(n, generator=rng), torch.tensor([.5, 1., 2.]), torch.full((p,), .3)
    before = torch.randn(p, k, generator=rng)
    left = weight[:,None]*(rows - features @ before)
    effects, new_relevance, shift = ridge_effects(features, left, weight, before, relevance, spread)
    design = torch.cat([features, torch.ones(n, 1)], 1).double()
    penalty = torch.diag(torch.tensor([1/.3**2]*p + [0.]).double())
    gram = design.T @ (weight[:,None]*design)
    exact = torch.linalg.solve(gram + penalty, design.T @ (weight[:,None]*rows).double())
    torch.testing.assert_close(effects.double(), exact[:-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shift.double(), exact[-1], atol=1e-5, rtol=1e-4)  # not penalised
    covariance = torch.linalg.inv(gram + penalty)[:p,:p]
    determined = 1 - covariance.diagonal()/.3**2
    expected = (((exact[:-1]/spread)**2).sum(1)/(k*determined + 1)).sqrt()
    torch.testing.assert_close(new_relevance.double(), expected, atol=1e-5, rtol=1e-4)


def test_prior_mean_is_base_and_effects_and_history():
    learn = solved(features=films)
    own = learn.posterior.items
    prior = own.base + own.features @ own.effects + own.history
    torch.testing.assert_close(own.prior(), prior)
    new = own.counts == 0
    torch.testing.assert_close(own.mean[new], (own.first_base + own.features @ own.effects)[new])
    torch.testing.assert_close(own.variance[new], (own.first_spread**2).expand(int(new.sum()), -1))
    assert torch.equal(own.mean[0], own.first_base)  # '#na#' has no features


def test_without_features_nothing_changes():
    x = torch.tensor(EARLY[['user', 'item']].to_numpy())
    y = torch.tensor(EARLY.rating.to_numpy(), dtype=torch.float32)
    p = start(y, 100, 80, 3)
    p, q = (list(fit_rounds(o, x, y, n_rounds=3))[-1] for o in (p, start(y, 100, 80, 3)))
    assert torch.equal(p.items.mean, q.items.mean) and not p.items.has_features
    learn = solved()
    assert 'features' not in learn.saved_tables() and not any('effects' in k for k in learn.saved_tables()['posterior'])


def test_order_of_rows_and_columns_never_matters():
    def turned(): return films().sample(frac=1, random_state=0).iloc[:,::-1]
    assert same(solved(features=films), solved(features=turned))


def test_kinds_of_tables_are_alike():
    def arrow(): return pa.Table.from_pandas(films().rename_axis('item').reset_index(), preserve_index=False)
    def polars(): return pl.from_arrow(arrow())
    def column(): return films().rename_axis('item').reset_index()
    learn = solved(features=films)
    for o in (arrow, polars, column): assert same(learn, solved(features=o)), o


def test_folders_pairs_and_nights_keep_features(tmp_path):
    learn = solved(features=films, path=tmp_path)
    again = from_folder(learn.save_pretrained('folder'))
    assert same(learn, again) and again.features['item'].encoding == learn.features['item'].encoding
    learn.save('pair')
    other = collab_learner(learn.dls, n_factors=4, pretrained='pair', path=tmp_path)
    assert same(learn, other) and torch.equal(other.features['item'].values, learn.features['item'].values)
    for o in (learn, again): o.update(LATE, seed=0, features={'item': films()})
    rows = again.vocab['item'].rows(LATE.item.unique())
    assert (rows > 0).all() and again.features['item'].values[rows].abs().sum(1).gt(0).all()
    assert torch.equal(again.features['item'].values, again.posterior.items.features)
    assert same(from_folder(again.save_pretrained(tmp_path/'night')), again)


def people(ids=range(1, 101)):
    "What users are: whether they rate high, in truth."
    high = RATINGS.groupby('user').truth.mean().reindex(ids).fillna(3.) > RATINGS.truth.mean()
    return pd.DataFrame({'high': high}).rename_axis('user').reset_index()


@pytest.mark.parametrize('loss', [None, 'ials'])
def test_newcomers_get_rows_from_what_they_are(loss, tmp_path):
    dls = CollabDataLoaders.from_df(EARLY, seed=1, valid_pct=.01)
    learn = collab_learner(dls, n_factors=4, seed=0, features={'user': people()}, loss=loss)
    quiet(learn, 'fit_als', 6)
    new = people([101, 102]).assign(high=[True, False])
    folded = learn.fold_in(features=new)
    kept = from_folder(learn.save_pretrained(tmp_path/'m'))
    learn.add_ids('user', new)
    rows = torch.from_numpy(learn.vocab['user'].rows([101, 102]))
    assert folded.ids.tolist() == [101, 102] and not torch.equal(*folded.rows)
    torch.testing.assert_close(folded.vectors, learn.model.weight([101, 102], is_item=False))
    if not loss: torch.testing.assert_close(folded.variance, learn.posterior.users.variance[rows])
    lists, later = kept.recommend(features=new, k=3), learn.recommend([101, 102], k=3)
    assert lists.drop(columns='score').equals(later.drop(columns='score'))
    came = EARLY[:4].assign(user=102)
    for o in (learn, kept): o.fold_in(came, features=new, ids='all', commit=True)
    weights = [o.model.weight([101, 102], is_item=False) for o in (learn, kept)]
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)
    values = kept.features['user'].values[kept.vocab['user'].rows([101, 102])]
    assert torch.equal(values, learn.features['user'].values[rows])


def test_features_of_which_a_model_has_learned_nothing_are_refused():
    with pytest.raises(RatingsError, match='features of users, and the learner knows none'):
        solved(features=films).recommend(features=people())
    with pytest.raises(RatingsError, match='no ratings, no features; expected a table'): solved().fold_in()


def command(*args): return main(list(map(str, args)))


def test_features_by_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    films().rename_axis('item').to_csv('films.csv')
    people(range(1, 101)).to_csv('people.csv', index=False)
    films([70, 71]).assign(item=[900, 901]).to_csv('new.csv', index=False)
    EARLY.to_csv('early.csv', index=False)
    LATE[:600].to_csv('late.csv', index=False)
    told = '--item-features', 'films.csv', '--user-features', 'people.csv'
    assert command('train', 'early.csv', 'model', '--n-factors', 4, *told) == 0
    learn = from_folder('model')
    assert learn.vocab['item'].ids.tolist() == [*range(1, 80)] and learn.features['item'].values[1:].any(1).all()
    kinds = {o.name: o.kind for f in learn.features.values() for o in f.encoding.columns}
    assert kinds == {'kind': 'number', 'quality': 'number', 'high': 'number'}
    assert command('inspect', 'model') == 0 and "features of items: 'kind', 'quality'" in capsys.readouterr().out
    shutil.copytree('model', 'updated')
    assert command('update', 'updated', 'late.csv', '--item-features', 'new.csv') == 0
    updated = from_folder('updated')
    learn.update(LATE[:600], features={'item': pd.read_csv('new.csv')}, seed=1)
    assert same(updated, learn)
    assert command('night', 'model', 'late.csv', '--item-features', 'new.csv', '--delta', 'delta') == 0
    replica = shutil.copytree('model/versions/00001', 'replica')
    assert command('apply', replica, 'delta') == 0
    served = from_folder('model')
    assert same(served, from_folder(replica)) and (served.vocab['item'].rows([900, 901]) > 0).all()
    assert torch.equal(served.features['item'].values[-1], learn.features['item'].values[-1])
    people([555]).to_csv('newcomer.csv', index=False)
    assert command('recommend', 'model', '--user-features', 'newcomer.csv', '--k', 2, '--out', 'lists.csv') == 0
    lists = pd.read_csv('lists.csv')
    assert lists.user.tolist() == [555]*2
    assert lists['item'].tolist() == served.recommend(features=people([555]), k=2)['item'].tolist()


def test_files_of_features_are_read_by_kind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EARLY.assign(item='f' + EARLY['item'].astype(str)).to_csv('early.csv', index=False, sep=';')
    table = films().rename(index='f{}'.format).rename_axis('item').assign(when='2020-01-01')
    table = table.assign(kind='kind ' + table.kind.astype(str), quality=table.quality.where(table.quality > 2))
    def trained(df, *args):
        df.to_csv('films.csv', sep=';')
        options = ['--n-factors', 4, '--sep', ';', '--item-features', 'films.csv']
        return command('train', 'early.csv', 'model', *options, *args)
    assert trained(table) == 0
    kinds = {o.name: o.kind for o in from_folder('model').features['item'].encoding.columns}
    assert kinds == {'kind': 'category', 'quality': 'number', 'when': 'date'}
    capsys.readouterr()
    for df, args, why in ((table.assign(title='film ' + table.index), [], "'title' has 79 different texts in 79 rows"),
                          (table.rename_axis('film'), [], "no column 'item'"),
                          (table, ['--loss', 'bpr'], 'trained by descent')):
        assert trained(df, *args) == 2 and why in capsys.readouterr().err
    table.drop(columns='kind').to_csv('films.csv', sep=';')
    assert command('update', 'model', 'early.csv', '--item-features', 'films.csv') == 2
    assert "no column 'kind'; expected the columns that the model knows" in capsys.readouterr().err
    table.assign(kind='kind 7').to_csv('films.csv', sep=';')
    LATE.assign(item='f' + LATE['item'].astype(str)).to_csv('late.csv', index=False, sep=';')
    assert command('update', 'model', 'late.csv', '--item-features', 'films.csv') == 0
    features = from_folder('model').features['item']
    assert (features.values[1:,features.encoding.names.index('kind=kind 7')] > 0).all()  # texts, as the first were


def test_new_items_are_predicted_better():
    new = EARLY.item % 4 == 0
    def error(features):
        learn = solved(EARLY[~new], features)
        ids = np.setdiff1d(EARLY[new].item.unique(), learn.vocab['item'].ids)
        learn.add_ids('item', features().loc[ids] if features else ids)
        x = np.stack([v.rows(EARLY[new][c]) for c, v in learn.vocab.items()], 1)
        some = (x > 0).all(1)
        with torch.no_grad(): preds = learn.model(torch.from_numpy(x[some])).flatten().numpy()
        return ((preds - EARLY[new].rating[some])**2).mean()**.5
    plain, informed = error(None), error(films)
    assert informed < plain - .05
    assert error(lambda: films(noise=30)) < plain - .03


def test_noise_has_no_effects():
    def noise(): return films(noise=30).filter(like='noise')
    own = solved(features=noise).posterior.items
    assert (own.features @ own.effects).std(0)[-1] < .25*own.spread[-1]


def test_ids_without_features_have_the_base():
    learn = solved(features=lambda: films(range(1, 60)))
    learn.add_ids('item', [900])
    row = learn.vocab['item'].rows([900])[0]
    assert torch.equal(learn.posterior.items.mean[row], learn.posterior.items.first_base)
    assert not learn.features['item'].values[row].any()


def test_dropped_ids_are_gone(tmp_path):
    learn = solved(features=films, path=tmp_path)
    gone, kept = learn.vocab['item'].ids[:2].tolist(), learn.vocab['item'].ids[2:]
    before = learn.features['item'].values[learn.vocab['item'].rows(kept)]
    learn.drop_ids(items=gone)
    for o in (learn, from_folder(learn.save_pretrained('less'))):
        assert torch.equal(o.features['item'].values[o.vocab['item'].rows(kept)], before)
        assert torch.equal(o.features['item'].values, o.posterior.items.features)


def test_an_update_that_fails_leaves_features_as_they_were():
    learn = solved(features=films)
    values = learn.features['item'].values
    with pytest.raises(RatingsError, match='no column'): learn.update(LATE, features={'item': films()[['kind']]})
    assert learn.features['item'].values is values
    assert learn.posterior.items.features.shape == values.shape


def test_a_learner_that_knows_nothing_of_its_ids_can_be_told():
    learn = solved()
    ids = np.setdiff1d(range(1, 80), learn.vocab['item'].ids)
    known = learn.posterior.items.mean.clone()
    learn.set_features({'item': films()})
    assert torch.equal(learn.posterior.items.mean[1:], known[1:])  # rows with ratings are as they were
    learn.add_ids('item', films(ids))
    quality = films().quality[ids].to_numpy()
    bias = learn.posterior.items.mean[learn.vocab['item'].rows(ids), -1].numpy()
    assert np.corrcoef(quality, bias)[0,1] > .8


@pytest.mark.parametrize('frame, message', [
    (lambda: films().assign(title='text'), 'holds text'),
    (lambda: films().assign(tags='Drama|War'), 'get_dummies'),
    (lambda: films().assign(tags=[['Drama', 'War']] + [['War']]*78), 'get_dummies'),
    (lambda: films().assign(what=[{}]*79), 'objects'),
    (lambda: pd.concat([films(), films()]), 'more than once'),
    (lambda: films().set_axis([f'film {o}' for o in range(79)]), 'none of 79 ids'),
    (lambda: films().assign(quality=np.inf), 'infinite'),
    (lambda: films().assign(v=[[1., 2.]] + [[1.]]*78), 'one length'),
    (lambda: films().assign(v=[[1., np.inf]]*79), 'infinite'),
    (lambda: films().assign(v=[[]]*79), '1 or more'),
    (lambda: films().assign(genres=[['drama', 'war']]*79), 'tags as a column each'),
    (lambda: films().assign(v=[[1., 'two']]*79), 'not of numbers'),
    (lambda: films().assign(quality=1j), 'objects'),
    (lambda: films()[[]], 'one or more'),
])
def test_mistakes(frame, message):
    with pytest.raises((RatingsError, VocabError), match=message): solved(features=frame)


def test_models_trained_by_descent_refuse_features():
    dls = CollabDataLoaders.from_df(EARLY, seed=1)
    for kwargs in ({'use_nn': True, 'layers': [4]}, {'n_factors': 4, 'loss': 'bpr'}):
        with pytest.raises(RatingsError, match='trained by descent'):
            collab_learner(dls, features={'item': films()}, **kwargs)


def test_an_encoding_is_what_it_was_saved_as():
    frame = films().assign(when=pd.date_range('2020-01-01', periods=79), v=[[1., 2.]]*79, gap=[np.nan, 1.]*39 + [2.])
    encoding = fit_encoding(frame)
    n = len(encoding.names)
    assert Encoding.of_tensor(encoding.to_tensor(), n) == encoding
    for bad in (torch.zeros(3, dtype=torch.uint8), encoding.to_tensor()[:-1]):
        with pytest.raises(CheckpointError, match='not an encoding'): Encoding.of_tensor(bad, n)
    with pytest.raises(CheckpointError, match='not an encoding'): Encoding.of_tensor(encoding.to_tensor(), n+1)


def test_features_of_a_side_can_be_replaced():
    p = start(torch.tensor([1., 2., 3.]), 3, 4, 2)
    side = with_features(p.items, torch.ones(4, 3))
    assert side.effects.shape == (3, 3) and torch.equal(side.prior(), p.items.prior())
    assert with_features(side, torch.zeros(4, 3)).effects is side.effects


def test_rankings_have_rows_for_items_without_positives(tmp_path):
    def ranked(features): return solved(features=features, loss='ials', path=tmp_path)
    learn, plain = ranked(films), ranked(None)
    ids = np.setdiff1d(range(1, 80), learn.vocab['item'].ids)
    known = learn.vocab['item'].ids[plain.posterior.item_counts[plain.vocab['item'].id_rows].numpy() > 0]
    assert torch.equal(learn.model.weight(known), plain.model.weight(known))
    learn.add_ids('item', films(ids))
    assert learn.model.weight(ids).abs().sum(1).gt(0).all()
    again = from_folder(learn.save_pretrained('ranked'))
    assert torch.equal(again.model.weight(ids), learn.model.weight(ids))
    for o in (learn, again): o.update(LATE, seed=0, features={'item': films()})
    torch.testing.assert_close(again.model.weight(known), learn.model.weight(known))


def test_lists_say_how_sure_they_are():
    learn = solved()
    users = EARLY.user.unique()[:5]
    plain, sure = learn.recommend(users, k=5), learn.recommend(users, k=5, with_std=True)
    assert plain.equals(sure.drop(columns='std')) and (sure['std'] > 0).all()
    came = pd.DataFrame({'user': 999, 'item': EARLY.item.unique()[:3], 'rating': 5.})
    lists = {z: learn.recommend([999, *users], ratings=came, k=5, with_std=True, explore=z) for z in (-2., 1e-9, 2.)}
    new = learn.recommend([999, *users], ratings=came, k=5)
    np.testing.assert_allclose(lists[1e-9].score, new.score, atol=1e-5)
    assert lists[1e-9]['item'].tolist() == new['item'].tolist()
    assert lists[-2.]['std'].mean() < lists[2.]['std'].mean()
    assert lists[1e-9].groupby('user')['std'].mean()[999] > sure['std'].mean()  # three ratings say little
    for kwargs in ({'on_unknown': 'popular'}, {}):
        other = solved(loss='ials') if not kwargs else learn
        with pytest.raises(RatingsError, match='expected a model of ratings'):
            other.recommend(users, with_std=True, **kwargs)


@pytest.mark.parametrize('y_range', [None, (0, 5.5)])
def test_intervals_hold(y_range):
    df = planted_ratings(n_users=150, n_items=100, n_ratings=8000, seed=2)
    train = np.random.default_rng(0).random(len(df)) < .8
    learn = solved(df[train][['user', 'item', 'rating']], y_range=y_range)
    x = np.stack([v.rows(df[~train][c]) for c, v in learn.vocab.items()], 1)
    some = (x > 0).all(1)
    mean, std = predicted(learn.posterior, torch.from_numpy(x[some]), y_range)
    z = (torch.tensor(df[~train].rating.to_numpy()[some]) - mean)/std
    assert .74 < (z.abs() < 1.2816).float().mean() < .88


def test_nights_stretch_intervals_until_they_hold(tmp_path):
    df = planted_ratings(n_users=150, n_items=100, n_ratings=8000, seed=2)[['user', 'item', 'rating']]
    learn = solved(df[:4000])
    noise = learn.posterior.noise
    learn.posterior.noise *= .5  # as if ratings scattered half as far
    assert (learn.posterior.stretch, learn.posterior.judged) == (1, 0)
    for k in range(8): learn.update(df[4000 + 500*k:4500 + 500*k], seed=0)
    again = from_folder(learn.save_pretrained(tmp_path/'m')).posterior
    assert (again.stretch, again.judged) == pytest.approx((learn.posterior.stretch, learn.posterior.judged))
    assert again.stretch > 1.1 and again.judged == 4000
    assert .65 < again.stretch*again.noise/noise < 1.25  # the noise grows in these nights, too


def test_effects_are_in_units_of_their_columns():
    learn = solved(features=films)
    own, table = learn.posterior.items, learn.feature_effects()
    one = films().assign(quality=lambda o: o.quality + 1)
    added = torch.tensor(learn.features['item'].encoding.encode(one) - learn.features['item'].encoding.encode(films()))
    effect = (added @ own.effects)[0].numpy()
    np.testing.assert_allclose(table.loc['quality', 'bias'], effect[-1], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(table.loc['quality'].filter(like='factor'), effect[:-1], rtol=1e-3, atol=1e-6)


def test_what_is_unlike_its_features_is_surprising():
    quality = films()
    quality.loc[5, 'quality'] = 6. - quality.quality[5]  # said to be the contrary of what it is
    quality = quality[['quality']]
    learn = solved(features=lambda: quality)
    table = learn.surprising(k=60)
    difference = table.set_index('item').difference
    assert difference.abs().is_monotonic_decreasing and len(table) == (learn.posterior.items.counts > 0).sum()
    np.testing.assert_allclose(table.bias - table.expected, table.difference, atol=1e-6)
