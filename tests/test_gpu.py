"""The same work on a GPU and on a CPU: the same rows, up to rounding, and the same answers. Skipped where there is no
GPU; with `TEST_DEVICE=cpu` a CPU takes its place, so that a change of the library shows here as well."""

import copy
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.schedule import fit_one_cycle  # noqa: F401, puts the method on the learner
from fastai.optimizer import Adam
from helpers import quiet

from collab_pretrained.all import CollabDataLoaders, CollabLearner, collab_learner, nearest, planted_ratings
from collab_pretrained.scale import load_sharded, save_sharded, shard_embeddings

GPU = os.environ.get('TEST_DEVICE', 'cuda')
if GPU == 'cuda' and not torch.cuda.is_available(): pytest.skip('needs a GPU', allow_module_level=True)
pytestmark = pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')

@pytest.fixture(scope='module')
def ratings():
    df = planted_ratings(n_users=300, n_items=120, n_ratings=12_000)
    return [df[df.period == o] for o in ('early', 'late')]

def make(df, device, path='.', bs=128, **kwargs):
    torch.manual_seed(0)
    dls = CollabDataLoaders.from_df(df, seed=1, bs=bs, device=device, path=path)
    return collab_learner(dls, **{'n_factors': 8, **({} if 'loss' in kwargs else {'y_range': (0, 5.5)}), **kwargs})

def weights(learn): return {k: v.cpu().clone() for k, v in learn.model.state_dict().items()}
def is_on(learn, device): return {o.device.type for o in learn.model.parameters()} == {device}
def close(a, b, tol=1e-4):
    "Whether two learners have the same rows, up to rounding."
    return all(a[k].shape == b[k].shape and torch.allclose(a[k], b[k], atol=tol, rtol=0) for k in {**a, **b})

@pytest.fixture
def trained(ratings): # on a GPU and on a CPU, from the same start in the same order
    both = [make(ratings[0], o) for o in (GPU, 'cpu')]
    for o in both: quiet(o, 'fit_one_cycle', 2, 1e-2)
    return both

@pytest.mark.parametrize(
    'kwargs',
    [{}, {'sparse': True}, {'opt_func': Adam}, {'use_nn': True, 'layers': [16]}, {'na_dropout': 0.1}],
    ids=['dense', 'sparse', 'Adam', 'network', 'na_dropout'],
)
def test_training(ratings, kwargs):
    both = [make(ratings[0], o, **kwargs) for o in (GPU, 'cpu')]
    for o in both: quiet(o, 'fit_one_cycle', 2, 1e-2)
    gpu, cpu = both
    assert is_on(gpu, GPU) and is_on(cpu, 'cpu') and gpu.dls.train_ds.tensors[0].device.type == GPU
    if 'na_dropout' not in kwargs: assert close(weights(gpu), weights(cpu), 2e-3)
    assert np.allclose(gpu.recorder.values, cpu.recorder.values, atol=.05 if 'na_dropout' in kwargs else 1e-3)
    preds, targs = quiet(gpu, 'get_preds')
    assert {preds.device.type, targs.device.type} == {'cpu'} and torch.equal(targs, cpu.dls.valid_ds.tensors[1])
    one = quiet(gpu, 'get_preds', dl=gpu.dls.test_dl(ratings[0].head(1)))[0]
    assert (
        one.shape == preds[:1].shape
        and abs(one.flatten()[0] - quiet(gpu, 'get_preds', dl=gpu.dls.test_dl(ratings[0].head(2)))[0].flatten()[0])
        < 1e-6
    )


@pytest.mark.parametrize('loss', ['bpr', 'warp', 'softmax'])
def test_ranking(ratings, loss):
    both = [make(ratings[0], o, loss=loss) for o in (GPU, 'cpu')]
    for o in both: quiet(o, 'fit_one_cycle', 5)
    found = [quiet(o, 'evaluate').loc['all'] for o in both]
    assert (
        is_on(both[0], GPU) and abs(found[0]['recall@10'] - found[1]['recall@10']) < 0.05
    )  # each draws its own unseen items
    assert torch.isfinite(quiet(both[0], 'fold_in', ratings[1]).rows).all()

def test_rows_from_ratings(trained, ratings):
    late = ratings[1]
    folded = [quiet(o, 'fold_in', late) for o in trained]
    assert (
        folded[0].rows.device.type == GPU
        and torch.allclose(folded[0].rows.cpu(), folded[1].rows, atol=1e-3)
        and torch.allclose(folded[0].variance.cpu(), folded[1].variance, atol=1e-3)
    )
    for o in trained:
        quiet(o, 'fold_in', late, commit=True)
        quiet(o, 'fold_in', late, side='item', commit=True)
        quiet(o, 'adapt', late)
    assert is_on(trained[0], GPU) and close(*map(weights, trained), 5e-3)

@pytest.mark.parametrize('unseen', ['mean', 'popular', 'normal', 'random', 'nearest'])
def test_warm_start(trained, ratings, unseen):
    df = ratings[1]
    if unseen == 'nearest':
        unseen = {'items': nearest(pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), index=range(1, 201)))}
    a, b = (make(df, o, pretrained=old, unseen=unseen, seed=3) for o, old in zip((GPU, 'cpu'), trained, strict=True))
    assert close(weights(a), weights(b), 2e-3)
    rows = torch.from_numpy(a.match_report.users.rows)
    assert torch.equal(
        weights(a)['u_weight.weight'][rows >= 0], weights(trained[0])['u_weight.weight'][rows[rows >= 0]]
    )
    quiet(a, 'fit', 1)
    assert is_on(a, GPU)


@pytest.mark.parametrize('kwargs', [{}, {'sparse': True}, {'opt_func': Adam}], ids=['dense', 'sparse', 'Adam'])
def test_files_with_moments(ratings, tmp_path, kwargs):
    "An epoch after a load is the epoch that would have come, and moments come along to new rows."
    one = make(ratings[0], GPU, tmp_path, wd=.1, **kwargs)
    quiet(one, 'fit', 1, 1e-2)
    one.save('one')
    two = make(ratings[0], GPU, tmp_path, wd=.1, **kwargs).load('one')
    two.dls.train.epoch = one.dls.train.epoch
    for o in (one, two): quiet(o, 'fit', 1, 1e-2)
    assert close(weights(one), weights(two), 1e-5)
    next_day = make(ratings[1], GPU, tmp_path, pretrained='one', with_opt=True, **kwargs)
    quiet(next_day, 'fit', 1, 1e-2)
    assert is_on(next_day, GPU) and all(torch.isfinite(o).all() for o in weights(next_day).values())

def test_folder(trained, tmp_path):
    gpu = trained[0]
    gpu.save_pretrained(tmp_path/'model')
    back = CollabLearner.from_pretrained(tmp_path/'model')
    assert all(torch.equal(v, weights(back)[k]) for k, v in weights(gpu).items())
    assert back.recommend(k=3, exclude_seen=False)['item'].equals(gpu.recommend(k=3, exclude_seen=False)['item'])

def test_answers(trained, tmp_path):
    gpu = trained[0]
    cpu = copy.copy(trained[1])
    cpu.model.load_state_dict(gpu.model.state_dict())
    for ask in (
        lambda o: o.recommend(k=5),
        lambda o: o.similar_items(None, k=3),
        lambda o: o.similar_users([1, 2], k=3),
    ):
        a, b = map(ask, (gpu, cpu))
        assert a.drop(columns='score').equals(b.drop(columns='score')) and np.allclose(a.score, b.score, atol=1e-5)
    alone = pd.concat([gpu.recommend([o], k=5) for o in range(1, 40)], ignore_index=True)
    assert alone.equals(gpu.recommend(range(1, 40), k=5))
    assert np.allclose(gpu.evaluate(), cpu.evaluate(), atol=1e-5, equal_nan=True)
    for a, b in zip(gpu.export_vectors(tmp_path/'gpu'), cpu.export_vectors(tmp_path/'cpu'), strict=True):
        assert all(
            np.allclose(x, y, atol=1e-5)
            for x, y in zip(pd.read_parquet(a).vector, pd.read_parquet(b).vector, strict=True)
        )


def test_frozen_rows(trained, ratings):
    learn = make(ratings[1], GPU, pretrained=trained[0]).freeze_rows('matched')
    rows = torch.from_numpy(learn.match_report.items.rows) >= 0
    rows[0] = False  # '#na#' is the mean of the others
    before = weights(learn)
    quiet(learn, 'fit', 2, 1e-2, wd=.3)
    after = weights(learn)
    assert is_on(learn, GPU) and all(
        torch.equal(before[o][rows], after[o][rows]) for o in ('i_weight.weight', 'i_bias.weight')
    )
    assert not torch.equal(before['i_weight.weight'][~rows], after['i_weight.weight'][~rows])

def test_update_and_forget(trained, ratings):
    for o in trained:
        quiet(o, 'update', ratings[1], replay=.5, epochs=1, seed=5)
        o.drop_ids(users=[1, 2], items=[3])
    gpu, cpu = trained
    assert (
        is_on(gpu, GPU)
        and list(gpu.vocab['user'].ids) == list(cpu.vocab['user'].ids)
        and close(weights(gpu), weights(cpu), 0.05)
    )
    quiet(gpu, 'fit', 1)
    gpu.align(cpu)

@pytest.mark.parametrize('loss', [None, 'bpr', 'warp', 'softmax'])
def test_half_precision(ratings, loss):
    learn = make(ratings[0], GPU, **({} if loss is None else {'loss': loss})).to_fp16()
    quiet(learn, 'fit_one_cycle', 2, 1e-2)
    assert (
        all(o.dtype == torch.float32 for o in learn.model.parameters())
        and learn.recorder.values[-1][0] < learn.recorder.values[0][0]
    )


def test_larger_than_memory(ratings, tmp_path):
    pytest.importorskip('polars')
    ratings[0].to_parquet(tmp_path/'ratings.parquet')
    dls = CollabDataLoaders.from_stream(tmp_path/'ratings.parquet', seed=1, bs=128, device=GPU)
    assert {o.device.type for o in dls.one_batch()} == {GPU}
    learn = collab_learner(dls, n_factors=8, y_range=(0, 5.5))
    quiet(learn, 'fit_one_cycle', 2, 1e-2)
    assert is_on(learn, GPU) and learn.recorder.values[-1][1] < learn.recorder.values[0][1]

def test_one_process_of_several(ratings):
    learn = make(ratings[0], GPU)
    with learn.distrib_ctx(): quiet(learn, 'fit', 1, 1e-2)
    assert is_on(learn, GPU)

def test_pieces_of_one_process(ratings, tmp_path):
    alone = make(ratings[0], GPU, path=tmp_path)
    learn = make(ratings[0], GPU, path=tmp_path)
    with learn.distrib_ctx():
        pieces = shard_embeddings(learn)
        for o in (alone, pieces): quiet(o, 'fit', 1, 1e-2)
        save_sharded(pieces, 'pieces')
    back = load_sharded(make(ratings[0], GPU, path=tmp_path), 'pieces')
    assert close(weights(back), weights(alone), 1e-3)

def test_command(ratings, tmp_path):
    "Train, update and recommend, which take a GPU where there is one."
    for day, df in zip(('monday', 'tuesday'), ratings, strict=True):
        df[['user', 'item', 'rating', 'time']].to_csv(tmp_path / f'{day}.csv', index=False)

    def run(*args):
        return subprocess.run(
            [sys.executable, '-c', 'import sys; from collab_pretrained.cli import main; sys.exit(main())', *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    run('train', 'monday.csv', 'model', '--epochs', '1')
    run('update', 'model', 'tuesday.csv', '--out', 'next')
    assert len(run('recommend', 'next', '--k', '3').splitlines()) > 300
    assert 'user' in run('demo', '--ratings', 'monday.csv', '--nights', '2')
