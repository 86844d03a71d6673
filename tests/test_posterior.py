"What a model knows travels with it: chains of nights, files, ids in another order, interrupted updates."
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_pretrained.all import (
    CollabDataLoaders,
    CollabLearner,
    CollabWarning,
    RatingsError,
    collab_learner,
    planted_ratings,
)
from collab_pretrained.core import SIDES
from collab_pretrained.learner import als, update

pytestmark = pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')
RATINGS = planted_ratings(n_users=60, n_items=40, n_ratings=1600, seed=3)
EARLY, LATE = (RATINGS[RATINGS.period == o][['user', 'item', 'rating']] for o in ('early', 'late'))


def quiet(learn, what, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return getattr(learn, what)(*args, **kwargs)


def solved(df=EARLY, tmp_path='.', y_range=None, **kwargs):
    learn = collab_learner(CollabDataLoaders.from_df(df, seed=1, **kwargs), n_factors=4, y_range=y_range, path=tmp_path)
    return quiet(learn, 'fit_als', 4)


def rows(learn):
    "id -> vector and bias, of both sides."
    return {
        (o, i): t for o in SIDES for i, t in zip(list(learn.side(o).vocab), als.side_table(learn.model, o), strict=True)
    }


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def parts(posterior):
    "Every tensor of a posterior."
    return {(o, k): v for o in SIDES for k, v in vars(posterior.side(o)[0]).items()}


@pytest.mark.parametrize('y_range', [None, (0, 5.5)])
def test_ten_nights_without_news(tmp_path, y_range):
    learn = solved(tmp_path=tmp_path, y_range=y_range)
    quiet(learn, 'update', LATE)
    before = rows(learn)
    for _ in range(10): assert quiet(learn, 'update', LATE).n_new == 0
    assert same(before, rows(learn))
    for _ in range(3): quiet(learn, 'adapt')
    assert same(before, rows(learn))


def test_a_folder_and_a_night_are_all_that_is_needed(tmp_path):
    "The same night on a learner with all its ratings and on its folder gives the same rows, variances and predictions."
    learn = solved(tmp_path=tmp_path)
    learn.save_pretrained('monday')
    again = CollabLearner.from_pretrained(tmp_path/'monday')
    assert same(rows(learn), rows(again))
    for o in (learn, again): quiet(o, 'update', LATE)
    a, b = rows(learn), rows(again)
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=1e-5)
    for k, v in parts(learn.posterior).items():
        torch.testing.assert_close(v, parts(again.posterior)[k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('way', ['pair', 'folder'])
def test_round_trip(tmp_path, way):
    learn = solved(tmp_path=tmp_path)
    if way == 'pair': learn.save('x')
    else: learn.save_pretrained('x')
    again = collab_learner(learn.dls, n_factors=4, path=tmp_path, pretrained='x')
    for k, v in parts(learn.posterior).items(): assert torch.equal(v, parts(again.posterior)[k]), k
    assert again.posterior.noise == pytest.approx(learn.posterior.noise)
    assert np.array_equal(again.evidence().pairs(), learn.evidence().with_pairs(again.seen.pairs()).pairs())


def test_left_out_of_a_folder(tmp_path):
    learn = solved(tmp_path=tmp_path)
    learn.save_pretrained('x', posterior=False, seen=False)
    assert sorted(o.name for o in (tmp_path/'x').iterdir()) == ['config.json', 'model.safetensors', 'vocab.json']
    again = CollabLearner.from_pretrained(tmp_path/'x')
    before, known = (
        rows(again),
        {
            (o, i)
            for o in SIDES
            for i, n in zip(list(again.side(o).vocab), again.posterior.side(o)[0].counts, strict=True)
            if n
        },
    )
    quiet(again, 'update', LATE)  # with a posterior that is estimated from counts
    assert all(t.isfinite().all() for t in rows(again).values())
    untouched = [k for k in known if k[1] not in set(LATE.user) | set(LATE['item'])]
    assert untouched and all(torch.equal(before[k], rows(again)[k]) for k in untouched)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_ratings_and_ids_never_matters(seed):
    shuffled = LATE.sample(frac=1, random_state=seed)
    learns = [solved(), solved()]
    for o, df in zip(learns, (LATE, shuffled), strict=True): quiet(o, 'update', df)
    a, b = map(rows, learns)
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-4, rtol=1e-4)


def test_warm_start_moves_rows_by_id(tmp_path):
    learn = solved(tmp_path=tmp_path)
    learn.save_pretrained('x')
    warm = collab_learner(
        CollabDataLoaders.from_df(LATE.iloc[::-1], seed=2), n_factors=4, path=tmp_path, pretrained='x'
    )
    old, new = rows(learn), rows(warm)
    matched = [k for k in new if k in old]
    assert len(matched) > 40 and all(torch.equal(old[k], new[k]) for k in matched)
    for o in SIDES:
        counts = {
            i: n for i, n in zip(list(learn.side(o).vocab), learn.posterior.side(o)[0].counts.tolist(), strict=True)
        }
        for i, n in zip(list(warm.side(o).vocab), warm.posterior.side(o)[0].counts.tolist(), strict=True):
            assert n == counts.get(i, 0)


def test_adapt_counts_no_rating_twice(tmp_path):
    learn = solved(tmp_path=tmp_path)
    learn.save_pretrained('x')
    warm = collab_learner(learn.dls, n_factors=4, path=tmp_path, pretrained='x')
    before = rows(warm)
    with pytest.warns(CollabWarning, match='taken in before'): warm.adapt()
    assert same(before, rows(warm))


def test_an_update_that_fails_leaves_the_learner_as_it_was(tmp_path, monkeypatch):
    for learn in (solved(tmp_path=tmp_path), quiet_sgd(tmp_path)):
        before, sizes, n = rows(learn), [len(o) for o in learn.vocab.values()], len(learn.dls.train_ds)
        opt = learn.opt
        def fails(*args, **kwargs): raise KeyboardInterrupt
        monkeypatch.setattr(als, 'night', fails)
        with pytest.raises(KeyboardInterrupt): quiet(learn, 'update', LATE)
        monkeypatch.undo()
        assert (
            same(before, rows(learn))
            and [len(o) for o in learn.vocab.values()] == sizes
            and len(learn.dls.train_ds) == n
        )
        assert learn.opt is opt
        quiet(learn, 'fit', 1)
        assert quiet(learn, 'update', LATE).n_new == len(LATE)


def quiet_sgd(tmp_path):
    learn = collab_learner(CollabDataLoaders.from_df(EARLY, seed=1), n_factors=4, y_range=(0, 5.5), path=tmp_path)
    quiet(learn, 'fit', 2, 1e-2)
    return learn


def test_frozen_rows_stay_bit_equal(tmp_path):
    learn = solved(tmp_path=tmp_path)
    kept = learn.side('item').vocab.ids[:15].tolist()
    learn.freeze_rows(kept, 'item')
    before = rows(learn)
    quiet(learn, 'update', LATE)
    quiet(learn, 'fit_als', 2)
    after = rows(learn)
    assert all(torch.equal(before['item', o], after['item', o]) for o in kept)
    assert not torch.equal(
        before['user', LATE.user.iloc[0]] if ('user', LATE.user.iloc[0]) in before else before['user', '#na#'],
        after['user', LATE.user.iloc[0]],
    )


def test_a_rating_given_again_replaces_the_old_one(tmp_path):
    learn = solved(tmp_path=tmp_path)
    again = EARLY.head(30).assign(rating=lambda d: 6 - d.rating)
    report = quiet(learn, 'update', again)
    assert report.n_new == 0 and report.n_replaced == (again.rating != EARLY.head(30).rating).sum()
    held = pd.concat([o.items for o in (learn.dls.train_ds, learn.dls.valid_ds)])
    merged = held.merge(again, on=['user', 'item'])
    assert len(merged) == 30 and (merged.rating_x == merged.rating_y).all()


def test_dropped_ids_leave_no_row_behind(tmp_path):
    learn = solved(tmp_path=tmp_path)
    gone = learn.side('user').vocab.ids[:3].tolist()
    mark = als.side_table(learn.model, 'user')[learn.side('user').vocab.rows(gone)]
    learn.drop_ids(users=gone)
    for o in ('variance', 'counts', 'history', 'implicit'):
        assert len(getattr(learn.posterior.users, o)) == len(learn.side('user').vocab)
    assert not any((als.side_table(learn.model, 'user') == o).all(1).any() for o in mark)
    learn.save_pretrained('x')
    assert not set(gone) & set(json.loads((tmp_path/'x/vocab.json').read_text())['user'])
    again = CollabLearner.from_pretrained(tmp_path/'x')
    assert again.seen.n_users == len(learn.side('user').vocab)


def test_weights_count_as_repeats(tmp_path):
    some = EARLY.head(400)
    heavy = some.assign(w=1.)
    heavy.loc[heavy.index[:50], 'w'] = 2.
    twice = pd.concat([some, some.head(50)])
    kwargs = dict(splits=None, valid_pct=0)
    with warnings.catch_warnings(action='ignore'):
        a, b = solved(heavy, tmp_path, weight_name='w', **kwargs), solved(twice, tmp_path, **kwargs)
    for k, v in rows(a).items(): torch.testing.assert_close(v, rows(b)[k], atol=1e-4, rtol=1e-4)


def test_mistakes(tmp_path):
    learn = solved(tmp_path=tmp_path)
    with pytest.raises(RatingsError, match='n_rounds=0'): learn.fit_als(0)
    with pytest.raises(RatingsError, match='replay=20'): learn.update(LATE, replay=20)
    with pytest.raises(RatingsError): learn.update(LATE.rename(columns={'user': 'who'}))
    network = collab_learner(learn.dls, use_nn=True, y_range=(0, 5.5))
    with pytest.raises(RatingsError, match='epochs=0'): network.update(LATE, epochs=0)
    assert update.UpdateReport.__doc__


# rankings in closed form

def ranked(df=EARLY, tmp_path='.'):
    learn = collab_learner(CollabDataLoaders.from_df(df, seed=1), n_factors=4, loss='ials', path=tmp_path)
    return quiet(learn, 'fit_als', 5)


def test_ranking_nights_count_once_and_travel(tmp_path):
    learn = ranked(tmp_path=tmp_path)
    learn.save_pretrained('monday')
    again = CollabLearner.from_pretrained(tmp_path/'monday')
    assert same(rows(learn), rows(again)) and again.ranking.min_rating == learn.ranking.min_rating
    for o in (learn, again):
        assert quiet(o, 'update', LATE).n_new == len(LATE)
        before = rows(o)
        for _ in range(5): assert quiet(o, 'update', LATE).n_new == 0
        assert same(before, rows(o))
    a, b = rows(learn), rows(again)
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-4, rtol=1e-4)


def test_dislikes_are_not_likes(tmp_path):
    "Someone with nothing but one-star ratings gets the list of someone of whom nothing is known."
    learn = ranked(tmp_path=tmp_path)
    disliked = pd.DataFrame({'user': 'x', 'item': EARLY['item'].unique()[:8], 'rating': .5}).assign(user=99999)
    row = learn.fold_in(disliked).rows[0]
    torch.testing.assert_close(row, als.side_table(learn.model, 'user')[0])


def test_dropped_from_a_ranking(tmp_path):
    learn = ranked(tmp_path=tmp_path)
    gone = learn.side('user').vocab.ids[:3].tolist()
    learn.drop_ids(users=gone)
    assert len(learn.posterior.user_counts) == len(learn.side('user').vocab)
    learn.save_pretrained('x')
    assert quiet(CollabLearner.from_pretrained(tmp_path/'x'), 'update', LATE).n_new == len(LATE)
