"Code that was written for fastai's `collab`, with one import changed."
import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fastai import collab
from fastai.callback.all import ShortEpochCallback
from fastai.interpret import Interpretation
from fastai.losses import BCEWithLogitsLossFlat, L1LossFlat
from fastai.tabular.learner import tabular_learner
from fastai.torch_core import set_seed

from collab_pretrained.core import planted_ratings
from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.core import CollabLearner
from collab_pretrained.learner.factory import collab_learner

df = planted_ratings()[['user', 'item', 'rating']]


def learner(**kwargs): return collab_learner(CollabDataLoaders.from_df(df, seed=1), n_factors=4, **kwargs)


def test_a_loader_of_rows_to_score_takes_what_other_loaders_take():
    dls = CollabDataLoaders.from_df(df, seed=1)
    dl = dls.test_dl(df.head(100), shuffle=True, drop_last=True, bs=30)
    assert [len(x) for x, _ in dl] == [30, 30, 30]
    assert not torch.equal(torch.cat([x for x, _ in dl]), dls.test_dl(df.head(90)).one_batch()[0])


clicks = df.assign(rating=(df.rating > df.rating.median()).astype(float))

@pytest.mark.parametrize('table, loss, is_raised', [
    (clicks, BCEWithLogitsLossFlat(), False), (clicks, None, True), (df, L1LossFlat(), True), (df, None, True)])
def test_biases_start_at_the_mean_where_the_loss_is_lower_there(table, loss, is_raised):
    ours = collab_learner(CollabDataLoaders.from_df(table, seed=1), n_factors=4, seed=1, loss_func=loss)
    assert (ours.model.i_bias.weight.mean() > .1) == is_raised


def test_logits_train_as_well_as_with_fastai():
    def loss(maker, loaders):
        set_seed(1)
        learn = maker(loaders.from_df(clicks, seed=1), n_factors=8, loss_func=BCEWithLogitsLossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 5e-3)
        return learn.recorder.values[-1][1]
    # was .05 above
    assert loss(collab_learner, CollabDataLoaders) < loss(collab.collab_learner, collab.CollabDataLoaders) + .01


@pytest.mark.parametrize('train', [
    lambda o: o.lr_find(show_plot=False), lambda o: o.fit(1, cbs=ShortEpochCallback(.3)), lambda o: o.fit(1)])
def test_a_learner_can_be_copied_whatever_it_did_last(train):
    learn = learner()
    with learn.no_bar(), learn.no_logging(): train(learn)
    for other in (copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert torch.equal(other.get_preds()[0], learn.get_preds()[0])


def test_predict_is_quiet_and_answers_threads(capsys):
    learn, rows = learner(y_range=(0, 5.5)), df.head(300).to_dict('records')
    want = learn.get_preds(dl=learn.dls.test_dl(df.head(300)))[0].tolist()
    capsys.readouterr()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool: got = list(pool.map(lambda o: learn.predict(o)[1].item(), rows))
    finally: sys.setswitchinterval(before)
    assert got == pytest.approx(want, abs=1e-5)
    assert capsys.readouterr() == ('', '')


def test_predict_goes_through_the_losss_activation():
    learn = learner(loss_func=BCEWithLogitsLossFlat())
    row = df.iloc[0]
    assert learn.predict(row)[1] == pytest.approx(learn.get_preds(dl=learn.dls.test_dl(df.head(1)))[0].item())


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    (tmp_path/'work').mkdir()
    monkeypatch.chdir(tmp_path/'work')
    monkeypatch.setenv('HOME', str(tmp_path))
    learn = learner()
    for name in ('~/model', Path('~/other')):
        assert (learn.save_pretrained(name)/'config.json').samefile(tmp_path/Path(name).name/'config.json')
        assert CollabLearner.from_pretrained(name).recommend(1, k=3).equals(learn.recommend(1, k=3))
        assert learner(pretrained=name).match_report.side('user').coverage == 1
    assert learn.save('~/pair') == tmp_path/'pair.pth'
    learn.load('~/pair')
    assert not any((tmp_path/'work').iterdir())


def test_a_learner_of_fastai_over_our_loaders():
    dls = CollabDataLoaders.from_df(df, seed=1)
    theirs = collab.collab_learner(dls, n_factors=4)
    with theirs.no_bar(): Interpretation.from_learner(theirs).show_results([0])  # a single row has no dimension there
    learn = tabular_learner(dls, layers=[4], n_out=1, loss_func=L1LossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    with learn.no_bar(): assert learn.get_preds()[0].shape == (len(dls.valid_ds), 1)


def test_encoded_rows_and_ratings():
    for o in (CollabDataLoaders.from_df(df, seed=1), collab.CollabDataLoaders.from_df(df, seed=1)):
        x, y = next(iter(o.valid))
        assert o.valid.xs.columns.tolist() == o.xs.columns.tolist() == ['user', 'item']
        assert o.valid.xs.values[:len(x)].tolist() == x.tolist() and o.valid.y.tolist()[:len(x)] == y.flatten().tolist()
        assert (o.valid_ds.y.name, len(o.xs)) == ('rating', len(o.train_ds))
