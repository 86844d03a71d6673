"Rows in closed form against dense matrices, and what must hold of rounds, nights and fold-ins, whatever the ratings."
from dataclasses import fields

import numpy as np
import pytest
import scipy.linalg
import torch

from collab_pretrained.models.als import estimate_posterior, fit_rounds, solve_new_rows, update_posterior
from collab_pretrained.models.ials import (
    ALPHA0,
    NIGHT_STEP,
    REGULARIZATION,
    ials_fold_in,
    ials_night,
    ials_night_from_vectors,
    ials_rounds,
    init_factors,
    ridge,
    with_fallback,
)
from collab_pretrained.models.posterior import ROW_FIELDS, SidePosterior, expected_row, start
from collab_pretrained.models.solve import solve_rows, sort_both, sort_ratings

def planted(n_users=60, n_items=40, n=1500, k=3, noise=.3, taste=1., seed=0, shift=3.):
    "Ratings of a planted model; row 0 of either side has none."
    r = np.random.default_rng(seed)
    u, v = r.normal(0, taste, (n_users, k)), r.normal(0, .6, (n_items, k))
    bu, bi = r.normal(0, .4, n_users), r.normal(0, .4, n_items)
    x = np.stack([r.integers(1, n_users, n), r.integers(1, n_items, n)], 1)
    y = shift + (u[x[:,0]]*v[x[:,1]]).sum(1) + bu[x[:,0]] + bi[x[:,1]] + r.normal(0, noise, n)
    return torch.from_numpy(x), torch.tensor(y, dtype=torch.float32), (n_users, n_items)


def fitted(x, y, size, k=3, n_rounds=4, weight=None, y_range=None, seed=0):
    *_, res = fit_rounds(start(y, *size, k, seed, weight, y_range), x, y, weight, y_range, n_rounds)
    return res


def answers(p, x):
    u, v = p.users.mean[x[:,0]], p.items.mean[x[:,1]]
    return (u[:,:-1]*v[:,:-1]).sum(1) + u[:,-1] + v[:,-1]


def rmse(p, x, y): return ((answers(p, x) - y)**2).mean().sqrt().item()


def tensors(p):
    sides = ('users', p.users), ('items', p.items)
    return {f'{name}.{f.name}': getattr(side, f.name) for name, side in sides for f in fields(SidePosterior)}


def assert_finite(p):
    for name, o in tensors(p).items(): assert o.isfinite().all(), name
    assert np.isfinite(p.noise) and p.noise > 0
    for s in (p.users, p.items): assert (s.variance > 0).all() and (s.spread > 0).all()


def assert_same(p, q, tol=0.):
    for (name, a), b in zip(tensors(p).items(), tensors(q).values(), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        assert not a.numel() or (a - b).abs().max() <= tol*max(1., b.abs().max().item()), name
    assert abs(p.noise - q.noise) <= tol*max(1, q.noise)


# rows

@pytest.mark.parametrize('k, n', [(1, 300), (3, 1500), (6, 400), (20, 900)])
@pytest.mark.parametrize('weighted', [False, True])
def test_rows_equal_a_dense_gaussian(k, n, weighted):
    "Mean, variance and expected error of rows with fewer and with more ratings than numbers, by scipy in float64."
    x, y, size = planted(n=n)
    rng = torch.Generator().manual_seed(1)
    def draw(*shape): return torch.randn(*shape, generator=rng)
    prior, others = draw(size[0], k+1), draw(size[1], k+1)
    variance, doubt, weight = draw(size[0], k+1)**2 + .1, draw(size[1], k+1)**2*.1, torch.rand(n, generator=rng)*3
    ratings = sort_ratings(x, y, *size, k+1, weight if weighted else None)
    mean, var, error = solve_rows(ratings, prior, variance, others, doubt, .7)
    for row in range(size[0]):
        at = x[:,0] == row
        c, w = x[at,1], weight[at].double().numpy() if weighted else np.ones(int(at.sum()))
        d = np.concatenate([others[c,:-1].double().numpy(), np.ones((len(c), 1))], 1)
        s = np.concatenate([doubt[c,:-1].double().numpy(), np.zeros((len(c), 1))], 1)
        target = (y[at] - others[c,-1]).double().numpy()
        held = np.diag(1/variance[row].double().numpy())
        factor = scipy.linalg.cho_factor(held + (d.T*w @ d + np.diag((s*w[:,None]).sum(0)))/.7**2)
        m = scipy.linalg.cho_solve(factor, held @ prior[row].double().numpy() + d.T @ (w*target)/.7**2)
        cov = scipy.linalg.cho_solve(factor, np.eye(k+1))
        np.testing.assert_allclose(mean[row], m, atol=2e-4)
        np.testing.assert_allclose(var[row], np.diag(cov), rtol=1e-3, atol=1e-6)
        miss = (target - d @ m)**2 + ((d @ cov)*d).sum(1) + s @ np.diag(np.outer(m, m) + cov) + doubt[c,-1].numpy()
        np.testing.assert_allclose(error[row], (w*miss).sum(), rtol=2e-3, atol=2e-3)


def test_sorted_ratings_hold_each_rating_once():
    x, y, size = planted(n=777)
    for k, o in enumerate(sort_both(x, y, size[0], size[1], 4)):
        chunks = [torch.stack([c.rows[:,None].expand_as(c.others), c.others, c.y], -1).flatten(0, 1) for c in o.chunks]
        held = torch.cat(chunks)
        held = held[held[:,1] < size[1-k]]
        given = torch.cat([x.flip(1) if k else x, y[:,None]], 1)
        assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, given.float().tolist()))
        assert (o.per_root()[o.counts == 0] == 0).all()


# rounds

@pytest.mark.parametrize('shift, scale', [(0., 4.), (100., 1.), (-7., .25), (50., 16.)])
def test_ratings_shifted_and_scaled_give_answers_shifted_and_scaled(shift, scale):
    x, y, size = planted()
    a, b = answers(fitted(x, y, size), x), answers(fitted(x, y*scale + shift, size), x)
    assert ((b - shift)/scale - a).abs().max() < 2e-2


def test_a_weight_of_2_is_the_rating_twice():
    x, y, size = planted()
    base, new = fitted(x[:900], y[:900], size), (x[900:], y[900:])
    twice, weight = tuple(torch.cat([o, o]) for o in new), torch.full((600,), 2.)
    assert_same(update_posterior(base, new[0], new[1], weight), update_posterior(base, twice[0], twice[1]), 1e-5)
    a, b = (solve_new_rows(base, 'user', *o, weight=w) for o, w in ((new, weight), (twice, None)))
    for o, p in zip(a, b, strict=True): torch.testing.assert_close(o, p, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('y_range', [None, (-4., 10.)])
def test_threads_share_the_work_and_find_the_same_rows(y_range, weighted):
    x, y, size = planted(n_users=2000, n_items=500, n=60_000)
    weight = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) + .5 if weighted else None
    n_threads, fits = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert len(sort_ratings(x, y, *size, 4).helpers) == n - 1
            fits.append(fitted(x, y, size, weight=weight, y_range=y_range))
            assert torch.get_num_threads() == n
    finally: torch.set_num_threads(n_threads)
    assert_same(*fits, 1e-5)


def test_order_of_ratings_does_not_matter():
    x, y, size = planted()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert (answers(fitted(x, y, size), x) - answers(fitted(x[order], y[order], size), x)).abs().max() < 1e-3


DEGENERATE = {'none': lambda x, y: (x[:0], y[:0]), 'one': lambda x, y: (x[:1], y[:1]),
              'two': lambda x, y: (x[:2], y[:2]), 'constant': lambda x, y: (x, torch.full_like(y, 4.)),
              'zeros': lambda x, y: (x, torch.zeros_like(y)), 'repeated': lambda x, y: (x[:1].repeat(50, 1), y[:50])}


@pytest.mark.parametrize('y_range', [None, (0., 6.)])
@pytest.mark.parametrize('name', DEGENERATE)
def test_degenerate_ratings_give_numbers(name, y_range):
    x, y, size = planted(n=200)
    y = y.clamp(.5, 5.5)
    a, b = DEGENERATE[name](x, y)
    for k in (1, 3):
        p = fitted(a, b, size, k=k, n_rounds=5, y_range=y_range)
        q = update_posterior(p, x[:5], y[:5], y_range=y_range)
        for o in (p, q, estimate_posterior(p.users.mean, p.items.mean, a, b, y_range=y_range)): assert_finite(o)
        of = torch.tensor([[0, 3], [0, 3], [2, 5]]), torch.tensor([4., 4., 1.])
        mean, variance = solve_new_rows(p, 'user', *of, y_range=y_range)
        assert mean.shape == variance.shape == (3, k+1) and mean.isfinite().all()
    if name == 'constant' and y_range is None: assert (answers(fitted(a, b, size), x) - 4).abs().max() < .01


def test_rows_without_ratings_are_the_expected_row():
    x, y, size = planted()
    p = fitted(x, y, (size[0]+3, size[1]+2))
    for own, other, n in ((p.users, p.items, size[0]), (p.items, p.users, size[1])):
        without = own.counts == 0
        assert without[0] and without[n:].all()
        assert torch.equal(own.mean[without], expected_row(own, other).expand(int(without.sum()), -1))
        torch.testing.assert_close(own.variance[without], own.spread.expand(int(without.sum()), -1)**2)
        assert (own.history[without] == 0).all()


def test_taste_is_found_from_any_start():
    x, y, size = planted(200, 100, 8000)
    test = torch.arange(len(x)) % 5 == 0
    fits = [fitted(x[~test], y[~test], size, k=4, n_rounds=10, seed=s) for s in (0, 1)]
    assert max(rmse(p, x[test], y[test]) for p in fits) < .42 and y.std() > 1  # the noise is .3


def ridge_biases(x, y, size, n=30):
    "Biases alone: alternating, shrunk by what their own spread asks for."
    mean, bias, spread, noise = y.mean(), [torch.zeros(o) for o in size], [torch.tensor(.4)]*2, torch.tensor(.9)
    for _ in range(n):
        for k in (0, 1):
            count = torch.bincount(x[:,k], minlength=size[k])
            left = y - mean - bias[1-k][x[:,1-k]]
            variance = 1/(count/noise**2 + 1/spread[k]**2)
            bias[k] = torch.zeros(size[k]).index_add_(0, x[:,k], left)*variance/noise**2
            spread[k] = (bias[k]**2 + variance)[count > 0].mean().sqrt()
        noise = (y - mean - bias[0][x[:,0]] - bias[1][x[:,1]]).pow(2).mean().sqrt()
    return lambda x: mean + bias[0][x[:,0]] + bias[1][x[:,1]]


@pytest.mark.parametrize('n_users, n_items, n', [(300, 2000, 20_000), (1500, 200, 30_000)])
def test_without_taste_twenty_factors_are_no_worse_than_biases(n_users, n_items, n):
    x, y, size = planted(n_users, n_items, n, taste=0., noise=.9)
    test = torch.arange(n) % 5 == 0
    p = fitted(x[~test], y[~test], size, k=20, n_rounds=10)
    simple = ((ridge_biases(x[~test], y[~test], size)(x[test]) - y[test])**2).mean().sqrt().item()
    assert rmse(p, x[test], y[test]) < simple + .002


@pytest.mark.parametrize('y_range', [None, (-2., 8.)])
def test_tables_with_columns_that_are_alike_are_fitted_on(y_range):
    "As gradient descent with strong weight decay leaves them: rounds must not diverge."
    x, y, size = planted(200, 100, 8000)
    p = fitted(x, y, size, k=1, n_rounds=10, y_range=y_range)
    rng = torch.Generator().manual_seed(0)
    def alike(m):
        vectors = m[:,:1].repeat(1, 30)/30**.5 + .01*torch.randn(len(m), 30, generator=rng)
        return torch.cat([vectors, m[:,1:]], 1)
    q = estimate_posterior(alike(p.users.mean), alike(p.items.mean), x, y, y_range=y_range)
    for later in fit_rounds(q, x, y, y_range=y_range, n_rounds=8):
        assert_finite(later)
        assert later.noise < 1.1*q.noise


def test_y_range_answers_through_a_sigmoid():
    x, z, size = planted(200, 100, 8000, shift=0.)
    y = 5*torch.sigmoid(z) + .2*torch.randn(len(z), generator=torch.Generator().manual_seed(0))
    test = torch.arange(len(x)) % 5 == 0
    p = fitted(x[~test], y[~test], size, k=4, n_rounds=10, y_range=(0., 5.))
    linear = answers(fitted(x[~test], y[~test], size, k=4, n_rounds=10), x[test]).clamp(0, 5)
    errors = [(o - y[test]).pow(2).mean().sqrt() for o in (5*torch.sigmoid(answers(p, x[test])), linear)]
    assert errors[0] < errors[1] - .01
    of = (x[:,0] == 7) & ~test
    pairs = torch.stack([torch.zeros(int(of.sum()), dtype=torch.long), x[of,1]], 1)
    mean, _ = solve_new_rows(p, 'user', pairs, y[of], y_range=(0., 5.))
    assert (mean[0] - p.users.mean[7]).abs().max() < .3


def test_estimated_posterior_is_close_to_the_one_that_was_fitted():
    x, y, size = planted(200, 100, 8000)
    p = fitted(x, y, size, k=4, n_rounds=10)
    q = estimate_posterior(p.users.mean, p.items.mean, x, y)
    assert torch.equal(q.users.mean, p.users.mean) and abs(q.noise/p.noise - 1) < .1
    for a, b in ((p.users, q.users), (p.items, q.items)):
        assert torch.equal(a.counts, b.counts)
        assert ((b.variance/a.variance)[a.counts > 0].log().abs().mean()) < .3


def test_nothing_passed_in_is_changed_and_the_random_state_is_left_alone():
    x, y, size = planted()
    p = fitted(x, y, size)
    before = {k: v.clone() for k, v in tensors(p).items()}
    held, state = (x.clone(), y.clone()), torch.get_rng_state()
    update_posterior(p, x[:50], y[:50])
    solve_new_rows(p, 'user', x[:50], y[:50])
    estimate_posterior(p.users.mean, p.items.mean, x, y)
    for _ in fit_rounds(p, x, y, n_rounds=2): pass
    assert all(torch.equal(before[k], v) for k, v in tensors(p).items())
    assert torch.equal(held[0], x) and torch.equal(held[1], y) and torch.equal(state, torch.get_rng_state())


# nights and fold-ins

def test_a_night_changes_only_rows_that_came():
    x, y, size = planted()
    p = fitted(x, y, size)
    some = (x[:,0] < 9) & (x[:,1] < 15)
    q = update_posterior(p, x[some], y[some])
    for k, (a, b) in enumerate(((p.users, q.users), (p.items, q.items))):
        away = torch.ones(size[k], dtype=torch.bool).index_fill(0, x[some,k], False) & (a.counts > 0)
        for name in ROW_FIELDS: assert torch.equal(getattr(a, name)[away], getattr(b, name)[away]), name
        assert torch.equal(b.counts, a.counts + torch.bincount(x[some,k], minlength=size[k]))
        assert not torch.equal(a.mean[~away], b.mean[~away])


def test_a_night_brings_new_rows_close_to_a_fit_of_all():
    x, y, size = planted(200, 100, 8000)
    old, test = x[:,0] < 150, torch.arange(len(x)) % 4 == 0
    p = fitted(x[old & ~test], y[old & ~test], size, k=4, n_rounds=10)
    q = update_posterior(p, x[~old & ~test], y[~old & ~test])
    of_all, new = fitted(x[~test], y[~test], size, k=4, n_rounds=10), ~old & test
    before, after, best = (rmse(o, x[new], y[new]) for o in (p, q, of_all))
    assert after < .5*before and after < best + .05


def test_a_night_learns_what_new_ids_are_like():
    x, y, size = planted(200, 100, 8000, seed=1)
    p = fitted(x[x[:,0] < 100], y[x[:,0] < 100], size, k=4, n_rounds=10)
    def level(o): return expected_row(o.users, o.items)[-1].item()
    p0, after = level(p), []
    for shift in (0., 1.):  # new users who rate as the others do, and new users who rate higher
        q = p
        for some in (x[:,0] // 10 == i for i in range(10, 20)): q = update_posterior(q, x[some], y[some] + shift)
        assert_finite(q)
        after.append(level(q))
    assert abs(after[0] - p0) < .15 and .3 < after[1] - after[0] < .7  # half of all users are new
    assert q.users.spread[-1] > p.users.spread[-1]


def test_one_rating_a_night_comes_near_to_one_night_of_all():
    x, y, size = planted(200, 100, 8000)
    p = chain = fitted(x[:7900], y[:7900], size, k=4, n_rounds=10)
    once = update_posterior(p, x[7900:], y[7900:])
    for i in range(7900, 8000): chain = update_posterior(chain, x[i:i+1], y[i:i+1])
    change, apart = ((answers(once, x) - answers(o, x)).pow(2).mean().sqrt() for o in (p, chain))
    assert apart < .25*change and torch.equal(once.users.counts, chain.users.counts)


def test_one_fold_in_equals_many_and_known_ids_start_from_their_own_row():
    x, y, size = planted()
    p = fitted(x, y, size)
    pairs, values = torch.tensor([[0, 3], [0, 7], [0, 9], [1, 3], [1, 30]]), torch.tensor([5., 2., 3., 1., 1.])
    mean, variance = solve_new_rows(p, 'user', pairs, values)
    one = solve_new_rows(p, 'user', pairs[:3], values[:3])
    assert one[0].shape == one[1].shape == (1, 4)
    for a, b in zip(one, (mean, variance), strict=True): torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=1e-4)
    known, new = solve_new_rows(p, 'user', pairs, values, rows=torch.tensor([5, -1]))[0]
    torch.testing.assert_close(new, mean[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(known, mean[0], atol=1e-2)


def test_fold_in_without_ratings_is_the_prior():
    p, none = fitted(*planted()), (torch.zeros(0, 2, dtype=torch.long), torch.zeros(0))
    assert solve_new_rows(p, 'user', *none)[0].shape == (0, 4)
    mean, variance = solve_new_rows(p, 'user', *none, rows=torch.tensor([-1]))
    torch.testing.assert_close(mean[0], p.users.base)
    torch.testing.assert_close(variance[0], p.users.spread**2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_equals_cpu():
    x, y, size = planted()
    a, b = fitted(x, y, size), fitted(x.cuda(), y.cuda(), size)
    assert (answers(a, x) - answers(b, x.cuda()).cpu()).abs().max() < 1e-2


# rankings

N_USERS, N_ITEMS, K = 41, 31, 6


@pytest.fixture
def pairs():
    "Positives of a random half of what 41 users and 31 items could have, some rows empty, '#na#' among them."
    rng = torch.Generator().manual_seed(0)
    liked = torch.rand(N_USERS, N_ITEMS, generator=rng) < torch.rand(N_ITEMS, generator=rng)**2
    liked[[0, 7]], liked[:,[0, 9]] = False, False
    x = liked.nonzero()
    return x[torch.randperm(len(x), generator=rng)]


@pytest.fixture
def first(): return init_factors(N_USERS, N_ITEMS, K, seed=1)


def rounds(pairs, first, n=3, **kwargs):
    *_, res = ials_rounds(first, pairs, n_rounds=n, **kwargs)
    return res


def dense_row(liked, weights, others, n_others):
    "The normal equations of one row, in float64."
    v, w = others.double().numpy(), np.zeros(len(others))
    np.add.at(w, liked, weights)
    m = ALPHA0*v.T @ v + (v*w[:,None]).T @ v + REGULARIZATION*np.sqrt(w.sum() + ALPHA0*n_others)*np.eye(v.shape[1])
    return np.linalg.solve(m, v.T @ w)


def all_close(a, b):
    for o, p in zip(a, b, strict=True): torch.testing.assert_close(o, p, atol=1e-5, rtol=1e-4)


def all_equal(a, b): return all(torch.equal(o, p) for o, p in zip(a, b, strict=True))


@pytest.mark.parametrize('weighted', [False, True])
def test_rows_of_a_ranking_solve_their_normal_equations(pairs, first, weighted):
    w = torch.rand(len(pairs), generator=torch.Generator().manual_seed(2)) + .5 if weighted else None
    res, n_users = rounds(pairs, first, weight=w), len(pairs[:,0].unique())
    for i in range(N_ITEMS):
        of = pairs[:,1] == i
        expected = dense_row(pairs[of,0].numpy(), 1. if w is None else w[of].numpy(), res.users, n_users)
        np.testing.assert_allclose(res.items[i].numpy(), expected, atol=2e-5)


def test_rounds_of_a_ranking_go_on_and_leave_their_start_as_it_was(pairs, first):
    before = [o.clone() for o in (pairs, *first)]
    all_close(rounds(pairs, rounds(pairs, first, 2), 1), rounds(pairs, first, 3))
    all_close(rounds(pairs.flip(0), first), rounds(pairs, first))
    assert all_equal(before, (pairs, *first))


def test_rows_without_positives(pairs, first):
    res = rounds(pairs, first)
    assert not res.users[[0, 7]].any() and not res.items[[0, 9]].any()
    served, has = with_fallback(res), res.user_counts > 0
    torch.testing.assert_close(served.users[[0, 7]], res.users[has].mean(0).expand(2, -1))
    assert torch.equal(served.users[has], res.users[has]) and torch.equal(served.items, res.items)
    nothing = rounds(pairs[:0], first)
    assert not any(o.any() for o in nothing) and not with_fallback(nothing).users.isnan().any()


def test_a_night_of_a_ranking_is_a_round_over_all(pairs, first):
    tonight, known = pairs[:20], pairs[20:]
    was = rounds(known, first)
    all_close(ials_night(was, tonight, known), rounds(pairs, was, 1, step=NIGHT_STEP))


def test_a_night_from_vectors_changes_those_who_came_only(pairs, first):
    tonight, was = pairs[:20], rounds(pairs[20:], first)
    res = ials_night_from_vectors(was, tonight)
    for side in (0, 1):
        came = torch.zeros(len(was[side]), dtype=torch.bool).index_fill_(0, tonight[:,side], True)
        assert torch.equal(res[side][~came], was[side][~came])
        assert (res[side][came] != was[side][came]).any(1).all()
        assert torch.equal(res[2+side], torch.bincount(pairs[:,side], minlength=len(came)).float())


def test_the_first_night_of_a_user_is_the_fold_in(pairs, first):
    mine = pairs[:,0] == 3
    was, at = rounds(pairs[~mine], first), torch.stack([torch.zeros_like(pairs[mine,1]), pairs[mine,1]], 1)
    res = ials_night_from_vectors(was, pairs[mine])
    torch.testing.assert_close(res.users[3], ials_fold_in(was, 'user', at, 1)[0], atol=1e-5, rtol=1e-4)
    again = rounds(pairs, was, 1)  # a round solves users first, from the items as they are
    torch.testing.assert_close(again.users[3], res.users[3], atol=1e-5, rtol=1e-4)


def test_regularization_grows_with_the_evidence():
    assert ridge(torch.tensor([4.]), 25).item() == pytest.approx(REGULARIZATION*(4 + ALPHA0*25)**.5)
