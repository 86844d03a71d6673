"What happens seldom: disks that can't, files that are not what they were, models and tables of unusual kinds."
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quiet

from collab_pretrained.core import CheckpointError, CollabWarning, RatingsError, SaveError, one_writer, planted_ratings
from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.core import vocab_difference
from collab_pretrained.learner.factory import collab_learner
from collab_pretrained.models.ials import IALS
from collab_pretrained.serve.delta import write_delta
from collab_pretrained.serve.night import night
from collab_pretrained.serve.versions import read_facts, versions_of
from collab_pretrained.weights import pairs
from collab_pretrained.weights.pairs import read_pair, save_pair

DF = planted_ratings(60, 40, 2000)[['user', 'item', 'rating', 'time']]
FIRST, NIGHTS = DF[:1400], [DF[1400:1600], DF[1600:1800]]


def learner(df=FIRST, rounds=2, **kwargs):
    options = {k: kwargs.pop(k) for k in ('time_name', 'implicit') if k in kwargs}
    learn = collab_learner(CollabDataLoaders.from_df(df, valid_pct=0., seed=1, **options), n_factors=3, **kwargs)
    return quiet(learn, 'fit_als', rounds) if rounds else learn


@pytest.fixture(scope='module')
def saved(tmp_path_factory): return learner().save_pretrained(tmp_path_factory.mktemp('saved')/'model')


@pytest.fixture
def model(saved, tmp_path): return shutil.copytree(saved, tmp_path/'model')


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(SaveError, match='file/model: not written'), one_writer(tmp_path/'file'/'model'): pass


def test_where_folders_cannot_be_locked_a_pair_is_saved_all_the_same(tmp_path, monkeypatch):
    def flock(fd, how): raise OSError(95, 'Operation not supported')
    monkeypatch.setattr(pairs.fcntl, 'flock', flock)
    wgts = {'u_weight.weight': torch.ones(2, 3), 'i_weight.weight': torch.ones(1, 3)}
    save_pair(tmp_path/'x', wgts, {'user': ['a', 'b'], 'item': ['c']})
    assert read_pair(tmp_path/'x.pth')[0]['u_weight.weight'].equal(torch.ones(2, 3))


def test_weights_of_two_layouts_are_saved_for_whoever_names_their_tables(tmp_path):
    wgts = {'u_weight.weight': torch.ones(2, 3), 'embeds.0.weight': torch.zeros(5, 3)}
    save_pair(tmp_path/'x', wgts, {'user': ['a', 'b'], 'item': ['c']})
    assert list(read_pair(tmp_path/'x.pth')[0]) == list(wgts)


def test_columns_in_another_order_are_told():
    a, b = ['#na#', 1], ['#na#', 1]
    assert vocab_difference({'user': a, 'item': b}, {'item': a, 'user': b}) == (
        "its columns are ['user', 'item'], and here they are ['item', 'user']")


@pytest.mark.parametrize('content', ['no JSON', '[1]', '{"schema": 1}'])
def test_a_configuration_that_is_none_is_named(model, content):
    (model/'config.json').write_text(content)
    with pytest.raises(CheckpointError, match='config.json: damaged, or changed since it was saved'): read_facts(model)


def test_a_night_on_a_damaged_model_changes_nothing(model):
    "Weights that are not those of the configuration are never made a version."
    (model/'model.safetensors').write_bytes(b'x'*100)
    with pytest.raises(CheckpointError, match=re.escape('model.safetensors')): night(model, NIGHTS[0])
    assert not versions_of(model)


def test_a_report_that_cannot_be_kept_is_a_warning(model):
    (model/'reports').write_text('a file in its place')
    with pytest.warns(CollabWarning, match='reports: the report is not kept'): report = night(model, NIGHTS[0])
    assert report.verdict == 'promoted' and versions_of(model) == [1, 2]


def test_a_night_without_ratings_to_measure_on_compares_nothing(model):
    report = night(model, NIGHTS[0], valid_pct=0.)
    assert (report.verdict, report.compared) == ('promoted', [])


def test_a_delta_that_cannot_be_written_is_named(model, tmp_path):
    for table in NIGHTS: night(model, table)
    (tmp_path/'file').touch()
    old, new = (model/'versions'/f'{o:05d}' for o in (2, 3))
    with pytest.raises(SaveError, match='file/delta: not written'): write_delta(old, new, tmp_path/'file'/'delta')


def test_times_that_are_no_dates_order_ratings_and_give_no_ages():
    "Numbers from 1 on sort a table; nothing is said of days."
    learn = learner(DF.assign(time=10.**np.linspace(0, 30, len(DF))), time_name='time')
    assert learn.ages is None and 'ages' not in learn.saved_tables()
    with pytest.raises(RatingsError, match="column 'time'"): learner(
        DF.assign(time=10.**np.linspace(0, 30, len(DF))), time_name='time', rounds=0).fit_als(half_life=30)


def test_a_ranking_trained_by_descent_adapts_by_epochs():
    old = learner(rounds=0, loss='bpr')
    warm = collab_learner(old.dls, n_factors=3, pretrained=old)
    with pytest.raises(RatingsError, match="adapt: a ranking by BPR is trained by descent; expected `epochs=1`"):
        warm.adapt()
    before = warm.model.u_weight.weight.detach().clone()
    quiet(warm, 'adapt', epochs=1)
    assert not torch.equal(before, warm.model.u_weight.weight)


def test_popularity_of_a_pretrained_ranking_counts_once():
    "A retrain over ratings that the pretrained model has learned from has the popularity that one fit has."
    days = np.sort(np.random.default_rng(0).uniform(0, 300, len(DF)))
    table = DF[['user', 'item']].assign(time=1.6e9 + 86400*days)
    def ranking(**kwargs): return learner(table, 0, loss='ials', time_name='time', implicit=True, **kwargs)
    once = quiet(ranking(), 'fit_als', 2, half_life=30.)
    again = quiet(ranking(pretrained=once), 'fit_als', 2, half_life=30.)
    assert once.ages.half_life == again.ages.half_life == 30
    assert np.allclose(once.ages.recent, again.ages.recent, rtol=1e-5) and once.ages.weight == again.ages.weight


@pytest.fixture(scope='module')
def two_tastes():
    "Clicks of users who have seen half of the items of their own kind, odd or even like themselves, and nothing else."
    rng = np.random.default_rng(0)
    pairs = [(u, i) for u in range(80) for i in range(u % 2, 40, 2) if rng.random() < .5]
    return pd.DataFrame(pairs, columns=['user', 'item'])


@pytest.mark.parametrize('loss', ['bpr', 'warp', 'softmax', 'ials'])
def test_new_rows_of_rankings_trained_by_descent_follow_their_clicks(two_tastes, loss):
    dls = CollabDataLoaders.from_df(two_tastes, valid_pct=0., seed=1, bs=128, implicit=True)
    learn = collab_learner(dls, n_factors=4, loss=loss, seed=0)
    quiet(learn, 'fit_one_cycle', 10, 5e-2)
    newcomer = pd.DataFrame({'user': 1000, 'item': [1, 3, 5, 7]})
    folded = learn.fold_in(newcomer, commit=True)
    assert folded.rows.shape == (1, 5) and folded.variance is None
    lists = learn.recommend([1000], k=8)['item']
    assert (lists % 2 == 1).all() and not set(lists) & {1, 3, 5, 7}
    film = pd.DataFrame({'user': range(0, 40, 2), 'item': 1001})
    learn.fold_in(film, side='item', commit=True)
    seen = learn.model.weight([1001])[0] @ learn.model.weight(range(41, 80), is_item=False).T
    assert seen[1::2].mean() > seen[::2].mean()  # of even users, who have not clicked on it, above odd ones


@pytest.mark.parametrize('from_folder', [False, True])
def test_rows_that_descent_trained_are_not_mixed_with_solved_ones(two_tastes, tmp_path, from_folder):
    "A model of `loss='ials'` after `fit` is a ranking by descent, also once it is read from its folder."
    dls = CollabDataLoaders.from_df(two_tastes, valid_pct=0., seed=1, bs=128, implicit=True)
    learn = collab_learner(dls, n_factors=4, loss='ials')
    quiet(learn, 'fit_one_cycle', 3, 5e-2)
    if from_folder: learn = type(learn).from_pretrained(learn.save_pretrained(tmp_path/'model'))
    biases = learn.model.i_bias.weight.detach().clone()
    assert biases.any()
    learn.fold_in(pd.DataFrame({'user': 1000, 'item': [1, 3, 5, 7]}), commit=True)
    assert torch.equal(learn.model.i_bias.weight, biases)
    with pytest.raises(RatingsError, match='trained by descent; expected `epochs=1`'):
        learn.adapt(pd.DataFrame({'user': [1], 'item': [2]}))
    if not from_folder:
        quiet(learn, 'fit_als', 2)
        assert not learn.model.i_bias.weight.any() and not learn.by_descent


def test_a_table_in_which_nothing_is_liked_is_told():
    dislikes = pd.DataFrame({'user': [1, 2, 3], 'item': [1, 2, 3], 'rating': [1., 2., 1.]})
    with pytest.raises(RatingsError, match='none of 3 ratings in the training part is at least 4'):
        learner(dislikes, loss=IALS(4))


def test_frozen_users_stay_when_ids_before_them_are_dropped():
    "Their rows have other numbers then, also those without a positive."
    rows = [(u, i, 5.) for u in range(9) for i in range(u % 3, 10, 3)] + [(9, 0, 1.)]
    learn = learner(pd.DataFrame(rows, columns=['user', 'item', 'rating']), loss='ials')
    learn.freeze_rows([5, 8, 9], 'user')
    others, dropped = [1, 3], [0, 2, 5]
    before = learn.model.weight([8, 9, *others], is_item=False).clone()
    learn.drop_ids(users=dropped, items=[0])
    assert torch.equal(learn.model.weight([8, 9, *others], is_item=False), before)
    assert learn.frozen_rows.ids['users'] == [8, 9]


def test_frozen_users_who_like_nothing_stay():
    "Their row is the mean of others, which moves, and theirs does not."
    rows = [(u, i, 5.) for u in range(10) for i in range(u % 3, 10, 3)] + [(10, 0, 1.), (10, 1, 1.)]
    learn = learner(pd.DataFrame(rows, columns=['user', 'item', 'rating']), loss='ials')
    learn.freeze_rows([10], 'user')
    before = learn.model.weight([10, 1], is_item=False).clone()
    learn.update(pd.DataFrame({'user': [1, 11], 'item': [0, 0], 'rating': 5.}))
    after = learn.model.weight([10, 1], is_item=False)
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])
