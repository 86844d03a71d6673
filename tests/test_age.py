"Half-lives of ratings and of popularity, and forgetting who is gone."
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from fastcore.test import test_close as close
from helpers import quiet
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_pretrained.all import (
    CollabDataLoaders,
    CollabLearner,
    CollabWarning,
    RatingsError,
    benchmark,
    collab_learner,
)
from collab_pretrained.cli import main
from collab_pretrained.data.age import age_weights, days_of
from collab_pretrained.models.posterior import faded, start
from collab_pretrained.serve.night import night

DAY = 86400

def waves(n=6000, n_users=80, n_items=120, n_days=120, seed=0):
    "Clicks on items that are popular for some days each, whoever the user is."
    rng = np.random.default_rng(seed)
    day = np.sort(rng.uniform(0, n_days, n))
    item = ((day/n_days*n_items).astype(int) + rng.integers(0, 12, n)) % n_items
    df = pd.DataFrame({'user': rng.integers(0, n_users, n), 'item': item, 'time': 1.6e9 + day*DAY})
    return df.drop_duplicates(['user', 'item'])

def clicks(df, seed=1, **kwargs):
    dls = CollabDataLoaders.from_df(df, 0, time_name='time', implicit=True, seed=seed)
    return collab_learner(dls, n_factors=4, loss='ials', **kwargs)

def ratings(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({'user': rng.integers(0, 60, n), 'item': rng.integers(0, 40, n)})
    df['rating'] = (3 + rng.normal(0, .5, 60)[df.user] + rng.normal(0, .5, 40)[df['item']] + rng.normal(0, .5, n))
    return df.assign(time=(1.6e9 + np.sort(rng.uniform(0, 500, n))*DAY).astype(int)).drop_duplicates(['user', 'item'])

def rated(df, **kwargs):
    learn = collab_learner(CollabDataLoaders.from_df(df, 0, seed=1, **{'time_name': 'time', **kwargs}), n_factors=3)
    return learn

def fitted(learn, *args, **kwargs):
    return quiet(learn, 'fit_als', *args, **kwargs)

def tables(learn): return [o.detach().clone() for o in learn.model.parameters()]
def same(a, b): return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_a_ranking_finds_out_that_popularity_ages():
    df = waves()
    learn = fitted(clicks(df), 4, half_life='auto')
    assert learn.ages.half_life in (1., 3., 7.) and learn.ages.weight > 0
    top = learn.recommend(3, k=5, exclude_seen=False)['item'].tolist()
    assert set(top) <= set(df['item'][df.time > df.time.max() - 15*DAY])

def test_no_half_life_where_none_helps():
    df = waves()
    df['time'] = np.random.default_rng(1).permutation(df.time)
    learn = fitted(clicks(df), 4, half_life='auto')
    assert learn.ages.half_life is None and not learn.model.i_bias.weight.any()
    assert fitted(rated(ratings()), 4, half_life='auto').ages.half_life is None

def test_times_alone_change_no_number():
    df = ratings()
    assert same(tables(fitted(rated(df), 3)), tables(fitted(rated(df[['user', 'item', 'rating']], time_name=None), 3)))
    df = waves(2000)
    plain = collab_learner(CollabDataLoaders.from_df(df, 0, implicit=True, seed=1), n_factors=4, loss='ials')
    assert same(tables(fitted(clicks(df), 3)), tables(fitted(plain, 3)))

def test_a_night_decays_and_adds(tmp_path):
    df = waves(3000)
    df = df.assign(user='u' + df.user.astype(str))
    early, late = df[:2000], df[2000:]
    first = fitted(clicks(early, path=tmp_path), 3, half_life=7)
    learn = CollabLearner.from_pretrained(first.save_pretrained('first'))
    assert learn.ages.weight == first.ages.weight and same(tables(learn), tables(first))
    learn.update(late)
    rows = learn.side('item').vocab.rows(df['item'].to_numpy())
    age = (df.time.max() - df.time.to_numpy())/DAY
    close(learn.ages.recent, np.bincount(rows, .5**(age/7), len(learn.ages.items)), 1e-4)
    close(learn.model.i_bias.weight[:,0].detach(), learn.ages.bonus(), 1e-6)
    recent = learn.ages.recent[rows[-1]]
    learn.drop_ids(items=[df['item'].iloc[0]])
    assert learn.ages.recent[learn.side('item').vocab.rows(df['item'].to_numpy()[-1:])[0]] == recent

def test_frozen_items_keep_their_recency():
    df = waves(2000)
    learn = fitted(clicks(df[:1500]), 3, half_life=7)
    held = df['item'].iloc[1400]
    row = learn.side('item').vocab.rows(np.array([held]))
    learn.freeze_rows([held], 'item')
    before = learn.model.i_bias.weight[row].clone()
    learn.update(df[1500:])
    row = learn.side('item').vocab.rows(np.array([held]))
    assert torch.equal(learn.model.i_bias.weight[row], before)

def test_a_half_life_is_weights_by_age():
    df = ratings()
    df['weight'] = age_weights(days_of(df.time.to_numpy()), 90.)
    close(tables(fitted(rated(df), 4, half_life=90))[2], tables(fitted(rated(df, weight_name='weight'), 4))[2], 1e-5)

def test_half_lives_need_times():
    df = ratings()
    with pytest.raises(RatingsError, match='expected loaders with the name of a time column'):
        rated(df, time_name=None).fit_als(half_life=30)
    said = "by BPR is trained by descent; expected `loss='ials'` for `fit_als` and half-"
    with pytest.raises(RatingsError, match=said):
        collab_learner(rated(df).dls, loss='bpr').fit_als(half_life=30)
    learn = fitted(rated(df[:1000]), 3, half_life=90)
    with pytest.raises(RatingsError, match="expected a column 'time' of times"):
        learn.update(df[1000:].drop(columns='time'))
    with pytest.raises(RatingsError, match="half_life='month'; expected a number of days above 0"):
        learn.fit_als(half_life='month')
    with pytest.raises(RatingsError, match='whose unit is not known'):
        rated(df.assign(time=range(len(df)))).fit_als(half_life='auto')

def test_what_is_known_fades_in_a_night_and_stays_without_news(tmp_path):
    df = ratings()
    early, late = df[:1000], df[1000:1040]
    learn = CollabLearner.from_pretrained(fitted(rated(early), 4, half_life=90).save_pretrained(tmp_path/'m'))
    before, variance, now = tables(learn), learn.posterior.users.variance, learn.ages.now
    with pytest.warns(CollabWarning): learn.update(early[-50:])
    assert same(before, tables(learn)) and torch.equal(learn.posterior.users.variance, variance)
    learn.update(late)
    assert learn.ages.now > now
    absent = torch.from_numpy(learn.side('user').vocab.rows(np.setdiff1d(early.user, late.user)))
    old = torch.from_numpy(np.searchsorted(np.unique(early.user), np.setdiff1d(early.user, late.user)) + 1)
    assert len(absent) and (learn.posterior.users.variance[absent,-1] > variance[old,-1]).all()

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-30, 1))
def test_variances_never_exceed_the_prior(seed, kept):
    rng = torch.Generator().manual_seed(seed)
    known = start(torch.rand(50, generator=rng)*4 + 1, 7, 5, 3, seed)
    for side in (known.users, known.items):
        side.variance *= 4*torch.rand(side.variance.shape, generator=rng) + 1e-6
        side.counts += torch.rand(len(side.counts), generator=rng)
    for side, was in zip((faded(known, kept).users, faded(known, kept).items), (known.users, known.items), strict=True):
        assert (side.variance <= side.spread**2*(1 + 1e-5)).all() and torch.equal(side.mean, was.mean)
        assert (side.variance >= was.variance.minimum(was.spread**2)*(1 - 1e-5)).all()

def test_who_is_gone_is_forgotten_and_comes_back_as_new(tmp_path):
    df = ratings()
    df.loc[df.user == 7, 'time'] = df.time.min()
    df.loc[df['item'] == 9, 'time'] = df.time.min()
    df = df.sort_values('time', kind='stable')
    early, late = df[:900], df[900:]
    learn = CollabLearner.from_pretrained(fitted(rated(early), 4).save_pretrained(tmp_path/'m'))
    report = learn.update(late, forget_after='200d')
    assert report.forgotten[:2] == (1, 1) and 0 < report.forgotten.of_users < .1 and '1 users' in repr(report)
    assert 7 not in learn.side('user').vocab.ids and 9 not in learn.side('item').vocab.ids
    again = CollabLearner.from_pretrained(learn.save_pretrained(tmp_path/'n'))
    assert len(again.ages.users) == len(again.side('user').vocab) == len(np.unique(df.user))
    back = pd.DataFrame({'user': [7], 'item': [1], 'rating': [3.], 'time': [df.time.max() + DAY]})
    other = back.assign(user=7_000)
    for learn, table in ((again, back), (CollabLearner.from_pretrained(tmp_path/'n'), other)): learn.update(table)
    rows = [o.posterior.users.mean[o.side('user').vocab.rows(np.array([u]))] for o, u in ((again, 7), (learn, 7_000))]
    assert torch.equal(*rows)

def test_without_times_nights_are_counted(tmp_path):
    df = ratings()
    learn = fitted(rated(df[df.user < 50][:800], time_name=None), 3)
    before = tables(learn)
    with pytest.raises(RatingsError, match="'30d', and the ratings have no times; expected a number of nights"):
        learn.update(df[-100:], forget_after='30d')
    with pytest.raises(RatingsError, match='forget_after=-1; expected a number of days'):
        learn.update(df[-100:], forget_after=-1)
    assert same(before, tables(learn)) and learn.ages is None
    nights = [df[df.user % 3 == k].tail(60).assign(item=100 + k).drop_duplicates('user') for k in range(3)]
    assert learn.update(nights[0], forget_after=1).forgotten[:2] == (0, 0)  # from now on
    before = set(learn.side('user').vocab.ids)
    learn = CollabLearner.from_pretrained(learn.save_pretrained(tmp_path/'m'))
    with pytest.warns(CollabWarning): learn.update(nights[0], forget_after=1)
    assert learn.ages.in_nights and learn.ages.now == 0  # no news is no night
    for table in nights[1:]: report = learn.update(table, forget_after=1)
    kept = set(nights[1].user) | set(nights[2].user)
    assert set(learn.side('user').vocab.ids) == kept and report.forgotten.users == len(before - kept) > 0

def test_a_guarded_night_is_one_night(tmp_path):
    df = ratings()
    learn = fitted(rated(df[:1000], time_name=None), 3)
    learn.save_pretrained(tmp_path/'m')
    for k in range(3): report = night(tmp_path/'m', df[1000 + 30*k:1030 + 30*k], forget_after='1')
    learn = CollabLearner.from_pretrained(tmp_path/'m')
    assert report.verdict == 'promoted' and learn.ages.now == 2
    assert set(learn.side('user').vocab.ids) == set(df.user[1030:1090])

def test_recent_popularity_is_a_floor():
    df = waves()
    dls = CollabDataLoaders.from_df(df, .1, time_name='time', splits='time', implicit=True, seed=1)
    learn = fitted(collab_learner(dls, n_factors=4, loss='ials'), 2)
    with pytest.warns(CollabWarning, match='and recent popularity alone'): found = learn.evaluate().loc['all']
    assert found['ndcg@10 of recent'] > 2*found['ndcg@10 of popular']
    aged = fitted(collab_learner(dls, n_factors=4, loss='ials'), 2, half_life='auto').evaluate().loc['all']
    assert aged['ndcg@10'] > found['ndcg@10 of recent'] - .01
    table = df.assign(rating=1.)[['user', 'item', 'rating', 'time']]
    tried = benchmark(table, time_name='time', loss='ials', epochs=1, n_factors=4)
    assert tried.floor == 'recent popularity' and tried.errors.loc['all', tried.floor] < tried.errors.popularity['all']

def command(*args): return main(list(map(str, args)))

def test_half_lives_and_forgetting_by_command(tmp_path, capsys):
    df = waves(3000)
    early, late, out = tmp_path/'early.csv', tmp_path/'late.csv', tmp_path/'model'
    df[:2000].to_csv(early, index=False)
    df[2000:].to_csv(late, index=False)
    names = '--time', 'time', '--implicit', '--n-factors', 4
    assert command('train', early, out, *names, '--half-life', 'auto', '--valid-pct', 0) == 0
    assert 'half-life chosen: ' in capsys.readouterr().out
    learn = CollabLearner.from_pretrained(out)
    assert learn.ages.half_life in (1., 3., 7.)
    assert command('night', out, late, '--forget-after', '20d', '--delta', tmp_path/'delta') == 0
    assert 'Forgotten: ' in capsys.readouterr().out
    replica = shutil.copytree(out/'versions'/'00001', tmp_path/'replica')
    assert command('apply', replica, tmp_path/'delta') == 0
    followed = CollabLearner.from_pretrained(replica)
    served = CollabLearner.from_pretrained(out)
    assert served.ages.half_life == learn.ages.half_life and served.ages.now > learn.ages.now
    assert same(tables(served), tables(followed)) and (served.ages.recent == followed.ages.recent).all()
    alive = df['item'][df.time > df.time.max() - 20*DAY].unique()
    assert sorted(served.side('item').vocab.ids) == sorted(alive)
    for args, why in ((('--half-life', 'long'), 'a number of days, or auto'),
                      (('--half-life', 7, '--method', 'sgd', '--loss', 'bpr'), 'with --method als')):
        assert command('train', early, tmp_path/'no', *names, *args) == 2
        assert why in capsys.readouterr().err

def test_folded_ratings_count_by_their_age():
    df = ratings()
    learn = fitted(rated(df), 4, half_life=90)
    new = pd.DataFrame({'user': 999, 'item': [1, 2, 3], 'rating': [5., 4., 5.], 'time': df.time.max() - 90*DAY})
    then, now, unknown = (learn.fold_in(o) for o in (new, new.assign(time=df.time.max()), new.drop(columns='time')))
    assert (then.variance > now.variance).all() and torch.equal(now.rows, unknown.rows)
    later = learn.fold_in(new.assign(time=df.time.max() + 90*DAY, user=[5]*3, item=[0, 1, 2]), ids='all')
    assert later.variance.shape == (1, 4)
    learn.fold_in(new, commit=True)
    row = learn.side('user').vocab.rows(np.array([999]))[0]
    assert learn.ages.users[row] == learn.ages.now and len(learn.ages.users) == len(learn.side('user').vocab)
    close(float(learn.posterior.users.counts[row]), 1.5, 1e-4)
