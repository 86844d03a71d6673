"""A list is the same whoever else is asked for: in order and to the last bit, on any number of threads."""

import numpy as np
import pytest
import torch

from collab_pretrained.all import CollabDataLoaders, collab_learner, planted_ratings
from collab_pretrained.models.embeddings import EmbeddingDotBias
from collab_pretrained.models.topk import CosineScores, DotScores, best, largest

KINDS = ['random', 'alike', 'nearly alike', 'long and short']


def tables(kind, n_items=3001, k=50):
    "A model whose items are spread, the same, or apart by about as much as a product is rounded."
    torch.manual_seed(0)
    model = EmbeddingDotBias(k, 300, n_items)
    items = model.i_weight.weight.data
    items.normal_()
    model.u_weight.weight.data.normal_()
    if kind == 'alike': items[:] = items[:7].repeat(-(-n_items//7), 1)[:n_items]
    if kind == 'nearly alike': items[:] = items[0] + items*2e-7
    if kind == 'long and short': items *= torch.logspace(-2, 2, n_items)[:,None]
    return model


def scorers(model, rows):
    yield DotScores(model, rows)
    yield CosineScores(model.u_weight.weight, np.arange(1, 300))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('rows', [np.arange(1, 3001), np.arange(5, 3000, 2)], ids=['all', 'some'])
def test_lists_do_not_depend_on_who_else_is_asked(kind, rows):
    for scores in scorers(tables(kind), rows):
        vals, items = best(scores, np.arange(1, 300), 10)
        for some in (np.array([7]), np.array([130, 2, 66, 2]), np.arange(40, 110)):
            v, i = best(scores, some, 10)
            assert np.array_equal(v, vals[some - 1]) and np.array_equal(i, items[some - 1])


@pytest.mark.parametrize('kind', KINDS)
def test_lists_are_those_of_float64_products(kind):
    model, rows = tables(kind), np.arange(1, 3001)
    u, v = (getattr(model, o).weight.detach().double() for o in ('u_weight', 'i_weight'))
    exact = ((u[1:20,None]*v[None,1:]).sum(2) + model.i_bias.weight.detach().double()[1:,0]).float()
    order = exact.sort(dim=1, descending=True, stable=True).indices[:,:10].numpy() + 1
    assert np.array_equal(best(DotScores(model, rows), np.arange(1, 20), 10)[1], order)


def test_lists_do_not_depend_on_threads():
    model, rows = tables('nearly alike'), np.arange(1, 3001)
    found, n = [], torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(best(DotScores(model, rows), np.arange(300), 10))
    finally: torch.set_num_threads(n)
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_hidden_scores_stay_hidden_where_all_are_within_the_rounding():
    "Also where the columns of the last block and the hidden ones are the only other ones."
    scores = torch.full((1, 64), -torch.inf)
    scores[0,:30] = 1.
    scores[0,10:15] = -torch.inf
    vals, cols = largest(scores, 27, lambda lines, cols: (torch.ones(cols.shape), torch.full((len(lines),), torch.inf)))
    assert cols[0].tolist() == [*range(10), *range(15, 30), -1, -1]
    assert (vals[0,-2:] == -torch.inf).all()


def test_lists_by_a_bound_do_not_depend_on_who_else_is_asked():
    df = planted_ratings(n_users=90, n_items=70, n_ratings=1500)[['user', 'item', 'rating']]
    learn = collab_learner(CollabDataLoaders.from_df(df, valid_pct=0., seed=0), n_factors=6)
    with learn.no_bar(), learn.no_logging(): learn.fit_als(3)
    for kwargs in ({}, {'explore': 1.}, {'explore': -.5, 'with_std': True}):
        with learn.no_bar(): every = learn.recommend(**kwargs)
        for user in learn.vocab['user'].ids[:9].tolist():
            alone = learn.recommend(user, **kwargs)
            assert alone.equals(every[every.user == user].reset_index(drop=True))
