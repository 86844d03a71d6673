"What a model knows travels with it: chains of nights, files, ids in another order, interrupted updates."
import copy
import json
import pickle
from functools import partial

import fastai.collab
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import load_learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from helpers import quiet
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
from collab_pretrained.learner.posterior import side_tables_of
from collab_pretrained.models.embeddings import side_table
from collab_pretrained.models.posterior import posterior_tables

pytestmark = pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')
RATINGS = planted_ratings(n_users=60, n_items=40, n_ratings=1600, seed=3)
EARLY, LATE = (RATINGS[RATINGS.period == o][['user', 'item', 'rating']] for o in ('early', 'late'))


def solved(df=EARLY, tmp_path='.', y_range=None, **kwargs):
    learn = collab_learner(CollabDataLoaders.from_df(df, seed=1, **kwargs), n_factors=4, y_range=y_range, path=tmp_path)
    return quiet(learn, 'fit_als', 4)


def from_folder(folder): return CollabLearner.from_pretrained(folder)  # ty: ignore[missing-attribute] it is patched in


def rows(learn):
    "id -> vector and bias, of both sides."
    return {(o, i): t for o in SIDES
            for i, t in zip(list(learn.side(o).vocab), side_table(learn.model, o), strict=True)}


def counts_of(learn):
    "id -> how many ratings its row rests on, of both sides."
    return {(o, i): n for o in SIDES
            for i, n in zip(list(learn.side(o).vocab), learn.posterior.side(o)[0].counts.tolist(), strict=True)}


def n_learned(learn):
    "How many ratings the rows rest on; users' and items' agree."
    users, items = (learn.posterior.side(o)[0].counts.sum().item() for o in SIDES)
    assert users == pytest.approx(items)
    return round(users)


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
    again = from_folder(tmp_path/'monday')
    assert same(rows(learn), rows(again))
    for o in (learn, again): quiet(o, 'update', LATE)
    a, b = rows(learn), rows(again)
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=1e-5)
    theirs = parts(again.posterior)
    for k, v in parts(learn.posterior).items(): torch.testing.assert_close(v, theirs[k], atol=1e-5, rtol=1e-5)


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
    again = from_folder(tmp_path/'x')
    before, known = rows(again), {k for k, n in counts_of(again).items() if n}
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
    dls = CollabDataLoaders.from_df(LATE.iloc[::-1], seed=2)
    warm = collab_learner(dls, n_factors=4, path=tmp_path, pretrained='x')
    old, new = rows(learn), rows(warm)
    matched = [k for k in new if k in old]
    assert len(matched) > 40 and all(torch.equal(old[k], new[k]) for k in matched)
    counts = counts_of(learn)
    for k, n in counts_of(warm).items(): assert n == counts.get(k, 0)


def test_adapt_counts_no_rating_twice(tmp_path):
    learn = solved(tmp_path=tmp_path)
    learn.save_pretrained('x')
    warm = collab_learner(learn.dls, n_factors=4, path=tmp_path, pretrained='x')
    before = rows(warm)
    with pytest.warns(CollabWarning, match='taken in before'): warm.adapt()
    assert same(before, rows(warm))


def test_an_update_that_fails_leaves_the_learner_as_it_was(tmp_path, monkeypatch):
    for learn in (solved(tmp_path=tmp_path), quiet_sgd(tmp_path)):
        before, sizes, n = rows(learn), [*map(len, learn.vocab.values())], len(learn.dls.train_ds)
        opt = learn.opt
        def fails(*args, **kwargs): raise KeyboardInterrupt
        monkeypatch.setattr(als, 'update_posterior', fails)
        with pytest.raises(KeyboardInterrupt): quiet(learn, 'update', LATE)
        monkeypatch.undo()
        assert same(before, rows(learn)) and [*map(len, learn.vocab.values())] == sizes
        assert len(learn.dls.train_ds) == n
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
    late = next(o for o in LATE.user if ('user', o) in before)
    assert not torch.equal(before['user', late], after['user', late])


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
    mark = side_table(learn.model, 'user')[learn.side('user').vocab.rows(gone)]
    learn.drop_ids(users=gone)
    for o in ('variance', 'counts', 'history', 'implicit'):
        assert len(getattr(learn.posterior.users, o)) == len(learn.side('user').vocab)
    assert not any((side_table(learn.model, 'user') == o).all(1).any() for o in mark)
    learn.save_pretrained('x')
    assert not set(gone) & set(json.loads((tmp_path/'x/vocab.json').read_text())['user'])
    again = from_folder(tmp_path/'x')
    assert again.seen.n_users == len(learn.side('user').vocab)


def test_weights_count_as_repeats(tmp_path):
    some = EARLY.head(400)
    heavy = some.assign(w=1.)
    heavy.loc[heavy.index[:50], 'w'] = 2.
    twice = pd.concat([some, some.head(50)])
    kwargs = dict(splits=None, valid_pct=0)
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
    again = from_folder(tmp_path/'monday')
    assert same(rows(learn), rows(again)) and again.ranking.min_rating == learn.ranking.min_rating
    for o in (learn, again):
        assert quiet(o, 'update', LATE).n_new == len(LATE)
        before = rows(o)
        for _ in range(5): assert quiet(o, 'update', LATE).n_new == 0
        assert same(before, rows(o))
    a, b = rows(learn), rows(again)
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-4, rtol=1e-4)


def disliked_by(learn, df, items):
    "User rows, once for each of `items` that they dislike."
    lower = df[(df.rating < learn.ranking.min_rating) & df['item'].isin(items)]
    likers = df.user[df.rating >= learn.ranking.min_rating].unique()
    return learn.side('user').vocab.rows(lower.user[lower.user.isin(likers)].to_numpy())


@pytest.mark.parametrize('loss', ['ials', 'softmax'])
def test_dislikes_are_not_likes(tmp_path, loss):
    """Someone with nothing but one-star ratings gets the mean row of those who gave few stars to the same items; and
    where nobody has, the row of someone of whom nothing is known."""
    dls = CollabDataLoaders.from_df(EARLY, valid_pct=0., seed=1)
    learn = collab_learner(dls, n_factors=4, loss=loss, path=tmp_path)
    quiet(learn, 'fit_als', 5) if loss == 'ials' else quiet(learn, 'fit', 2)
    learn.save_pretrained('folder')
    table = side_table(learn.model, 'user')
    average = table[0] if loss == 'ials' else table[1:].mean(0)
    items = EARLY['item'].unique()
    others = disliked_by(learn, EARLY, items[:8])
    want = (table[others].sum(0) + average)/(len(others) + 1)
    disliked = pd.DataFrame({'user': 99999, 'item': items[:8], 'rating': .5})
    both = pd.concat([disliked, disliked.assign(user=88888, rating=5.)])
    for o in (learn, from_folder(tmp_path/'folder')):
        torch.testing.assert_close(o.fold_in(disliked).rows[0], want)
        rows = o.fold_in(both).rows  # 88888 comes first, and learns from likes
        torch.testing.assert_close(rows[1], want)
        torch.testing.assert_close(rows[0], o.fold_in(both[both.user == 88888]).rows[0])
    for take in ('fold_in', 'update')*(loss == 'ials'):  # whose rows are solved: one row, however they come in
        o = from_folder(tmp_path/'folder')
        quiet(o, take, disliked, **({'commit': True} if take == 'fold_in' else {}))
        row = side_table(o.model, 'user')[o.side('user').vocab.rows(np.array([99999]))[0]]
        torch.testing.assert_close(row, want)
    loved = [i for i in items if not len(disliked_by(learn, EARLY, [i]))][:1]
    with pytest.warns(CollabWarning, match='about the average'):
        row = learn.fold_in(pd.DataFrame({'user': [99999], 'item': loved, 'rating': .5})).rows[0]
    torch.testing.assert_close(row, average)


def test_dropped_from_a_ranking(tmp_path):
    learn = ranked(tmp_path=tmp_path)
    gone = learn.side('user').vocab.ids[:3].tolist()
    learn.drop_ids(users=gone)
    assert len(learn.posterior.user_counts) == len(learn.side('user').vocab)
    learn.save_pretrained('x')
    assert quiet(from_folder(tmp_path/'x'), 'update', LATE).n_new == len(LATE)


# evidence counts once, and is not lost

OPTIMIZERS = {'fused': {}, 'sgd': {'opt_func': SGD}, 'adam': {'opt_func': Adam},
              'torch': {'opt_func': partial(OptimWrapper, opt=torch.optim.Adam)}}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_rows_trained_by_descent_after_rounds_are_kept_by_a_night(tmp_path, name):
    "Optimizers change tables behind autograd's back; with `na_dropout` nothing else touches them."
    dls = CollabDataLoaders.from_df(EARLY, seed=1)
    learn = collab_learner(dls, n_factors=4, path=tmp_path, na_dropout=.05, **OPTIMIZERS[name])
    quiet(learn, 'fit_als', 2)
    quiet(learn, 'fit', 1, 1e-2)
    before, few = rows(learn), LATE.head(3)
    tables = side_tables_of(learn)
    assert all(torch.equal(learn.posterior.side(o)[0].mean, t) for o, t in zip(SIDES, tables, strict=True))
    assert n_learned(learn) == len(learn.dls.train_ds)
    quiet(learn, 'update', few)
    came = {*few.user, *few['item'], '#na#'}
    assert all(torch.equal(t, rows(learn)[k]) for k, t in before.items() if k[1] not in came)


@pytest.mark.parametrize('loss', [None, 'ials'])
def test_an_exported_learner_knows_what_it_has_learned_from(tmp_path, loss):
    learn = ranked(tmp_path=tmp_path) if loss else solved(tmp_path=tmp_path)
    state = learn.solved, learn.seen, learn.trained_here
    learn.export('x.pkl')
    assert all(a is b for a, b in zip(state, (learn.solved, learn.seen, learn.trained_here), strict=True))
    again = load_learner(tmp_path/'x.pkl')
    before = rows(again)
    assert same(before, rows(learn)) and quiet(again, 'update', learn.dls.train_ds.items).n_new == 0
    assert same(before, rows(again)) and quiet(again, 'update', EARLY).n_new == len(learn.dls.valid_ds)
    assert quiet(again, 'update', LATE).n_new == len(LATE)


@pytest.mark.parametrize('way', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_of_a_learner_is_one(tmp_path, way):
    learn = solved(tmp_path=tmp_path)
    again = way(learn)
    for o in (learn, again): quiet(o, 'update', LATE)
    assert same(rows(learn), rows(again))
    for k, v in parts(learn.posterior).items(): assert torch.equal(v, parts(again.posterior)[k]), k


def test_loaders_can_be_shared(tmp_path):
    dls = CollabDataLoaders.from_df(EARLY, seed=1)
    learns = [quiet(collab_learner(dls, n_factors=4, path=tmp_path), 'fit_als', 2) for _ in range(2)]
    quiet(learns[0], 'update', LATE)
    assert learns[1].dls.train_ds is dls.train_ds and len(dls.train_ds) == .8*len(EARLY)
    assert quiet(learns[1], 'update', LATE).n_new == len(LATE)


def test_descent_after_a_warm_start_adds_to_what_was_known(tmp_path):
    learn = solved(tmp_path=tmp_path)
    warm = collab_learner(CollabDataLoaders.from_df(LATE, seed=2), n_factors=4, path=tmp_path, pretrained=learn)
    before, variance = counts_of(warm), warm.posterior.users.variance.clone()
    quiet(warm, 'fit', 1, 1e-3)
    train = warm.dls.train_ds.items
    for (o, i), n in counts_of(warm).items(): assert n == before[o, i] + (train[o] == i).sum()
    assert (warm.posterior.users.variance <= variance + 1e-6)[1:].float().mean() > .9
    after = counts_of(warm)
    quiet(warm, 'fit', 1, 1e-3)  # the same ratings again
    assert counts_of(warm) == after
    assert quiet(warm, 'update', train).n_new == 0 and counts_of(warm) == after


def test_a_folder_without_a_posterior_takes_in_new_ids(tmp_path):
    solved(tmp_path=tmp_path).save_pretrained('x', posterior=False, seen=False)
    learn = from_folder(tmp_path/'x')
    n = n_learned(learn)
    again = from_folder(tmp_path/'x')  # whose posterior nobody has asked for yet
    assert quiet(again, 'update', LATE).n_new == len(LATE) and n_learned(again) == n + len(LATE)


def test_rows_without_ratings_tonight_outlive_descent(tmp_path):
    "A pretrained model without a posterior, trained on by descent: rows that only the validation part has are kept."
    solved(tmp_path=tmp_path).save_pretrained('x', posterior=False, seen=False)
    tonight = LATE[LATE['item'].isin(EARLY['item'])]
    aside = sorted(set(tonight['item']))[:4]
    is_valid = tonight['item'].isin(aside).to_numpy()
    dls = CollabDataLoaders.from_df(tonight, seed=2, splits=[np.flatnonzero(o).tolist() for o in (~is_valid, is_valid)])
    warm = collab_learner(dls, n_factors=4, path=tmp_path, pretrained='x')
    quiet(warm, 'fit', 1, 1e-3)
    before = rows(warm)
    quiet(warm, 'update', EARLY[~EARLY['item'].isin(aside)].head(10))
    assert all(torch.equal(before['item', o], rows(warm)['item', o]) for o in aside)


def test_a_changed_rating_does_not_undo_what_a_folder_knows(tmp_path):
    "Rows can't be solved again from the ratings at hand, where they have learned from others as well."
    solved(tmp_path=tmp_path).save_pretrained('x')
    learn = from_folder(tmp_path/'x')
    quiet(learn, 'update', LATE)
    before, n = rows(learn), n_learned(learn)
    with pytest.warns(CollabWarning, match='rows keep what they learned from the older ones'):
        report = quiet(learn, 'update', LATE.head(5).assign(rating=lambda d: 6 - d.rating))
    assert report.n_replaced and same(before, rows(learn)) and n_learned(learn) == n


def test_committed_ratings_are_not_taken_in_again(tmp_path):
    learn = solved(tmp_path=tmp_path)
    new = LATE[~LATE.user.isin(EARLY.user) & LATE['item'].isin(EARLY['item'])]
    learn.fold_in(new, commit=True)
    before = rows(learn)
    report = quiet(learn, 'update', new)
    assert len(new) and (report.n_new, report.n_repeated) == (0, len(new)) and same(before, rows(learn))
    learn.fold_in(new, ids='all', commit=True)
    assert same(before, rows(learn))
    quiet(learn, 'fit_als', 2)  # the loaders don't have these ratings
    assert all(torch.equal(before['user', o], rows(learn)['user', o]) for o in new.user.unique())


def test_what_the_loaders_hold_but_rows_have_not_learned_from(tmp_path):
    learn = solved(tmp_path=tmp_path)
    warm = collab_learner(CollabDataLoaders.from_df(LATE, seed=2), n_factors=4, path=tmp_path, pretrained=learn)
    with pytest.warns(CollabWarning, match=f'{len(LATE)} of them are in the learner.*`learn.adapt'):
        assert quiet(warm, 'update', LATE).n_new == 0
    warm.adapt()
    assert set(map(tuple, warm.dls.train_ds.tensors[0].tolist())) <= set(map(tuple, warm.evidence().pairs().tolist()))


@pytest.mark.parametrize('loss', [None, 'ials'])
def test_ratings_that_validated_are_seen_and_can_be_learned(tmp_path, loss):
    learn = ranked(tmp_path=tmp_path) if loss else solved(tmp_path=tmp_path)
    held_out, train, user = learn.dls.valid_ds.items, learn.dls.train_ds.items, learn.dls.valid_ds.items.user.iloc[0]
    learn.save_pretrained('x')
    from_folder(tmp_path/'x').save_pretrained(tmp_path/'y')
    for o in (learn, from_folder(tmp_path/'x'), from_folder(tmp_path/'y')):
        assert not o.recommend(user, k=10)['item'].isin(EARLY['item'][EARLY.user == user]).any()
        assert quiet(o, 'update', train).n_new == 0
        if o is learn: assert quiet(o, 'update', EARLY).n_new == 0 and o.adapt(held_out) is o
        else: assert quiet(o, 'update', EARLY).n_new == len(held_out)
        assert o.evidence().has(learn.dls.valid_ds.tensors[0].numpy()).all()
        assert quiet(o, 'update', EARLY).n_new == 0


def test_weights_and_times_outlive_nights_and_deletions(tmp_path):
    def timed(df): return df.assign(w=1. + df.index % 3, t=np.arange(len(df)))
    dls = CollabDataLoaders.from_df(timed(EARLY), seed=1, weight_name='w', time_name='t')
    learn = quiet(collab_learner(dls, n_factors=4, path=tmp_path), 'fit_als', 2)
    weight = dls.train_ds.weights.sum().item()
    quiet(learn, 'update', LATE)
    assert learn.dls.train_ds.weights.sum().item() == pytest.approx(weight + len(LATE))
    assert len(learn.dls.train_ds.weights) == len(learn.dls.train_ds)
    learn.drop_ids(users=learn.side('user').vocab.ids[:3].tolist())
    assert len(learn.dls.train_ds.weights) == len(learn.dls.train_ds) < .8*len(EARLY) + len(LATE)
    own = quiet(collab_learner(dls, n_factors=4, path=tmp_path), 'fit_als', 2)
    own.drop_ids(items=own.side('item').vocab.ids[:3].tolist())
    for ds in (own.dls.train_ds, own.dls.valid_ds):
        kept = timed(EARLY).merge(ds.items[['user', 'item']].assign(w=ds.weights.numpy(), t=ds.times.numpy()),
                                  on=['user', 'item'], suffixes=('', '_kept'))
        assert len(kept) == len(ds) and (kept.w == kept.w_kept).all() and (kept.t == kept.t_kept).all()


def test_answers_reach_the_ratings_of_tonight(tmp_path):
    few = EARLY[EARLY.rating.between(2, 4)]
    learn = solved(few, tmp_path)
    assert learn.model.limits == (2, 4)
    quiet(learn, 'update', LATE)
    assert learn.model.limits == (LATE.rating.min(), LATE.rating.max())


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_precision(tmp_path, dtype):
    learn = collab_learner(CollabDataLoaders.from_df(EARLY, seed=1), n_factors=4, path=tmp_path)
    quiet(learn, 'fit', 1, 1e-2)
    learn.model.to(dtype)
    kept = {k: v for k, v in zip(learn.side('user').vocab, learn.model.u_weight.weight.tolist(), strict=True)}
    assert learn.posterior.users.mean.dtype == torch.float32
    quiet(learn, 'update', LATE)
    assert learn.model.u_weight.weight.dtype == dtype and learn.fold_in(LATE, ids='all').rows.isfinite().all()
    now = {k: v for k, v in zip(learn.side('user').vocab, learn.model.u_weight.weight.tolist(), strict=True)}
    assert all(now[k] == v for k, v in kept.items() if k not in {*LATE.user, '#na#'})


def test_aligned_models_know_what_they_have_seen(tmp_path):
    here, there = solved(tmp_path=tmp_path), solved(LATE, tmp_path)
    dls = CollabDataLoaders.from_df(LATE, seed=1)
    warm = collab_learner(dls, n_factors=4, path=tmp_path, pretrained=here.align(there))
    before = rows(warm)
    warm.adapt()
    assert same(before, rows(warm))


def test_loaders_of_fastai_are_refused(tmp_path):
    dls = fastai.collab.CollabDataLoaders.from_df(EARLY, bs=64, path=tmp_path)
    learn = collab_learner(dls, n_factors=4, y_range=(0, 5.5), path=tmp_path)
    quiet(learn, 'fit', 1)
    for f in (lambda: learn.posterior, learn.fit_als, learn.adapt, learn.evidence, lambda: learn.update(LATE),
              lambda: learn.fold_in(LATE)):
        with pytest.raises(RatingsError, match='expected our own `CollabDataLoaders`'): f()
    learn.save_pretrained('x')
    assert n_learned(from_folder(tmp_path/'x')) > 0


def test_descent_says_that_it_uses_no_weights(tmp_path):
    learn = solved(EARLY.assign(w=2.), tmp_path, weight_name='w')
    with pytest.warns(CollabWarning, match="column 'w'.* gradient descent counts each rating once"):
        quiet(learn, 'fit', 1)


def test_rows_from_a_stream_are_those_from_a_table(tmp_path):
    pytest.importorskip('polars')
    EARLY.to_parquet(tmp_path/'early.parquet', index=False)
    dls = CollabDataLoaders.from_stream(tmp_path/'early.parquet', valid_pct=0, seed=1)
    streamed = quiet(collab_learner(dls, n_factors=4, path=tmp_path), 'fit_als', 4)
    whole = solved(tmp_path=tmp_path, valid_pct=0.)
    tables = [posterior_tables(o.posterior) for o in (streamed, whole)]
    for k, t in tables[0].items(): torch.testing.assert_close(t, tables[1][k], rtol=1e-5, atol=1e-5)
