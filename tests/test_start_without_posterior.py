"Models that say less than ours do: trained by descent, without a posterior, of fastai, or never trained."
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quiet

from collab_pretrained.all import CollabDataLoaders, CollabWarning, WeightsError, collab_learner, planted_ratings
from collab_pretrained.core import SIDES
from collab_pretrained.learner.posterior import side_tables_of

pytestmark = pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')
RATINGS = planted_ratings(n_users=80, n_items=50, n_ratings=4000, changed=.3, seed=5)
EARLY, LATE = (RATINGS[RATINGS.period == o] for o in ('early', 'late'))
NEW, VALID = LATE[::2], LATE[1::2]
HOW = dict(n_factors=8, y_range=(0, 5.5))


def loaders(df): return CollabDataLoaders.from_df(df[['user', 'item', 'rating']], valid_pct=0, seed=1, bs=64)


def by_descent(path):
    torch.manual_seed(0)
    learn = collab_learner(loaders(EARLY), path=path, **HOW)
    quiet(learn, 'fit_one_cycle', 6, 2e-2, wd=.1)
    return learn


def rmse(learn, df=VALID):
    x = np.stack([v.rows(df[o]) for o, v in learn.vocab.items()], 1).clip(0)
    with torch.no_grad(): return ((learn.model.eval()(torch.from_numpy(x)).flatten().numpy() - df.rating)**2).mean()**.5


def write_bare(learn, path):
    "What another program knows to write: weights, and ids in their order."
    torch.save(learn.model.state_dict(), path/'bare.pth')
    (path/'bare_vocab.pkl').write_bytes(pickle.dumps([['#na#', *list(v)[1:]] for v in learn.vocab.values()]))
    return path/'bare'


def sources(path):
    learn = by_descent(path)
    learn.save('pair')
    yield 'pair', path/'models'/'pair'
    yield 'folder', learn.save_pretrained('folder', posterior=False)
    yield 'memory', learn
    yield 'bare', write_bare(learn, path)


def test_adapt_is_better_than_leaving_it_and_counts_once(tmp_path):
    for name, source in sources(tmp_path):
        left = rmse(collab_learner(loaders(NEW), pretrained=source, **HOW))
        learn = collab_learner(loaders(NEW), pretrained=source, adapt=True, **HOW)
        once = rmse(learn)
        assert once < left - .1, name
        for _ in range(10): learn.adapt()
        assert rmse(learn) == pytest.approx(once, abs=1e-3), name


def test_ratings_that_trained_the_model_are_no_news(tmp_path):
    for name, source in sources(tmp_path):
        learn = collab_learner(loaders(EARLY), pretrained=source, **HOW)
        before = [o.clone() for o in side_tables_of(learn)]
        match = "doesn't say which" if name == 'bare' else 'taken in before'
        with pytest.warns(CollabWarning, match=f'{len(EARLY)} of {len(EARLY)} ratings .*{match}'): learn.adapt()
        assert all(map(torch.equal, before, side_tables_of(learn))), name


def test_new_ratings_for_a_bare_model_come_as_a_table(tmp_path):
    learn = collab_learner(loaders(LATE), pretrained=write_bare(by_descent(tmp_path), tmp_path), **HOW)
    known = NEW[NEW.user.isin(EARLY.user) & NEW.item.isin(EARLY.item)]
    before = rmse(learn, known)
    assert quiet(learn, 'adapt', known[['user', 'item', 'rating']]) and rmse(learn, known) < before - .05


@pytest.mark.parametrize('side', SIDES)
def test_a_catalogue_without_a_known_user_or_item(tmp_path, side):
    other = SIDES[1 - SIDES.index(side)]
    early = set(by_descent(tmp_path).side(side).vocab.ids.tolist())
    source = by_descent(tmp_path).save_pretrained('folder', posterior=False)
    new, valid = (df[~df[side].isin(early) & df[other].isin(EARLY[other])] for df in (NEW, VALID))
    for table in (new, pd.concat([EARLY, new])):
        left = rmse(collab_learner(loaders(table), pretrained=source, **HOW), valid)
        assert rmse(collab_learner(loaders(table), pretrained=source, adapt=True, **HOW), valid) < .85*left


@pytest.mark.parametrize('loss', [None, 'ials'])
def test_an_untrained_learner_says_so(loss):
    def fresh(): return collab_learner(loaders(EARLY), n_factors=8, loss=loss)
    table = NEW[['user', 'item', 'rating']]
    learn = fresh()
    before = [o.clone() for o in side_tables_of(learn)]
    for f in (lambda: learn.update(table), lambda: learn.adapt(), lambda: learn.update(table, epochs=2)):
        with pytest.raises(WeightsError, match='never trained.*expected `fit_als'): f()
    assert all(map(torch.equal, before, side_tables_of(learn))) and len(learn.dls.train_ds) == len(EARLY)
    if loss is None:
        with pytest.raises(WeightsError, match='never trained'): learn.fold_in(table)
        by_hand = fresh()  # weights may come by other ways
        by_hand.model.load_state_dict(quiet(fresh(), 'fit_als', 2).model.state_dict())
        assert quiet(by_hand, 'update', table).n_new
    assert quiet(quiet(learn, 'fit_als', 2), 'update', table).n_new


def test_an_untrained_network_trains_on_what_it_is_asked_to():
    learn = collab_learner(loaders(EARLY), use_nn=True, layers=[8])
    report = quiet(learn, 'update', NEW[['user', 'item', 'rating']], epochs=5, lr=1e-2, replay=1.)
    assert report.old_after < report.old_before - 1
    with pytest.raises(WeightsError, match='no solution in closed form.*fit_one_cycle'): learn.adapt()


def split_learner(**kwargs):
    dls = CollabDataLoaders.from_df(RATINGS[['user', 'item', 'rating']], valid_pct=.2, seed=1, bs=256)
    return collab_learner(dls, n_factors=12, seed=0, **kwargs)


def held_out(learn, n_rounds):
    quiet(learn, 'fit_als', n_rounds)
    return learn.validate()[0]


@pytest.mark.parametrize('epochs,lr', [(1, 1e-3), (1, 5e-3), (2, 2e-2), (8, 3e-2)])
def test_rounds_after_epochs_are_no_worse_than_rounds_alone(epochs, lr):
    "Rows that descent has hardly trained are alike in all columns."
    alone, after = split_learner(), split_learner()
    quiet(after, 'fit_one_cycle', epochs, lr)
    assert held_out(after, 10) < 1.03*held_out(alone, 10)


@pytest.mark.parametrize('noise', [0., 1e-3, .1])
def test_rounds_go_down_from_columns_that_are_alike(noise):
    "As descent with strong weight decay leaves them: twelve columns that say the same."
    learn, gen = split_learner(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for side in SIDES:
            table = side_tables_of(learn)[SIDES.index(side)]
            same = table.new_empty(len(table), 1).normal_(generator=gen)*.3 + .3
            getattr(learn.model, f'{side[0]}_weight').weight[:] = (
                same + noise*torch.empty(len(table), 12).normal_(generator=gen))
    learn.drawn, learn.trained_here = None, True
    before = learn.validate()[0]
    found = [held_out(learn, 1) for _ in range(15)]
    assert max(found) < before and found[-1] < 1.05*min(found)
