"""Other libraries on the same split: the error on the test part, and the CPU seconds of training, each library in an
environment of its own.

Usage: python benchmarks/peers.py [--python cornac=/path/to/bin/python surprise=/path/to/bin/python ...] [--only ours
surprise ...]   (MovieLens 100K; a minute, one thread) A library runs in the Python that `--python` names for it, else
in this one; what does not import there is named as missing. The split is 80/20 at random,
`CollabDataLoaders.from_df(..., seed=42)`. `ours` is `fit_als`, 20 factors and 10 rounds, `ours_4` 4 rounds; `ours_sgd`
has the first settings of the table in nbs/53_learner.factory.ipynb. Settings were chosen on the training part alone:
Surprise's and cornac's are the best of a few (their defaults give 0.93 and 0.92); fastai's are those of its tutorial,
and lenskit, cmfrec and myFM have their defaults or a documented example's. `myfm_histories` knows of each user all
items that he rated and of each item all its users, as `fit_als` does. `plain` is a loop in torch without a learner:
what the machine gives just now."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ['OMP_NUM_THREADS'] = '1'
import numpy as np

def _learner(train, valid, bs=1024, **kwargs):
    import warnings

    warnings.filterwarnings('ignore')
    import pandas as pd
    import torch

    torch.set_num_threads(1)
    from collab_pretrained.all import CollabDataLoaders, collab_learner

    df = pd.DataFrame(np.concatenate([train, valid]), columns=['user', 'item', 'rating'])
    splits = np.arange(len(train)), len(train) + np.arange(len(valid))
    dls = CollabDataLoaders.from_df(df.astype({'user': int, 'item': int}), bs=bs, seed=0, splits=splits)
    return collab_learner(dls, **kwargs)

def _training(learn, method, *args):
    "A function that trains, without validations, which the others don't make; and one that answers."
    from collab_pretrained.all import CollabDataLoaders
    dls = learn.dls
    def fit():
        learn.dls = CollabDataLoaders(dls.train, dls.valid.new(dls.valid_ds.new_empty()), device=dls.device)
        with learn.no_bar(), learn.no_logging(): getattr(learn, method)(*args)
    def predict():
        with learn.no_bar(): return learn.get_preds(dl=dls.valid)[0].numpy().ravel()
    return fit, predict

def ours(train, valid): return _training(_learner(train, valid, n_factors=20), 'fit_als', 10)
def ours_4(train, valid): return _training(_learner(train, valid, n_factors=20), 'fit_als', 4)
def ours_sgd(train, valid):
    learn = _learner(train, valid, n_factors=50, y_range=(0, 5.5), wd=1.2, wd_bias=False)
    return _training(learn, 'fit_one_cycle', 5, 2e-2)

def fastai(train, valid):
    import warnings

    warnings.filterwarnings('ignore')
    import pandas as pd
    import torch

    torch.set_num_threads(1)
    from fastai.collab import CollabDataLoaders, collab_learner
    df = pd.DataFrame(train, columns=['user', 'item', 'rating']).astype({'user': int, 'item': int})
    learn = collab_learner(CollabDataLoaders.from_df(df, valid_pct=0.01, bs=64, seed=0), n_factors=50, y_range=(0, 5.5))
    def fit():
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 5e-3, wd=.1)
    def predict():
        test = pd.DataFrame(valid[:,:2].astype(int), columns=['user', 'item'])
        with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(test))[0].numpy()
    return fit, predict

def plain(train, valid):
    import torch

    torch.set_num_threads(1)
    from torch.nn.functional import embedding, mse_loss
    torch.manual_seed(0)
    ids = [np.unique(np.concatenate([train, valid])[:,k]) for k in (0, 1)]
    x, test = (
        torch.from_numpy(np.stack([np.searchsorted(o, part[:, k]) for k, o in enumerate(ids)], 1))
        for part in (train, valid)
    )
    y, bs, n_epoch = torch.from_numpy(train[:,2]).float(), 512, 8
    tables = [torch.empty(len(o), width).normal_(std=.01).requires_grad_() for width in (50, 1) for o in ids]
    def model(x):
        u, i, u_bias, i_bias = (embedding(x[:,k % 2], o) for k, o in enumerate(tables))
        return torch.sigmoid((u*i).sum(1) + u_bias[:,0] + i_bias[:,0])*5.5
    opt = torch.optim.AdamW(tables, 5e-3, (.9, .99), 1e-5, .4, fused=True)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 5e-3, total_steps=n_epoch*-(-len(x)//bs), pct_start=.25)
    def fit():
        for _ in range(n_epoch):
            order = torch.randperm(len(x))
            for xb, yb in zip(x[order].split(bs), y[order].split(bs), strict=True):
                mse_loss(model(xb), yb).backward()
                opt.step(), sched.step(), opt.zero_grad()
    def predict():
        with torch.no_grad(): return model(test).numpy()
    return fit, predict

def surprise(train, valid):
    import pandas as pd
    from surprise import SVD, Dataset, Reader

    data = Dataset.load_from_df(
        pd.DataFrame(train, columns=['user', 'item', 'rating']), Reader(rating_scale=(1, 5))
    ).build_full_trainset()
    algo = SVD(n_epochs=30, lr_all=.01, reg_all=.1, random_state=0)
    return lambda: algo.fit(data), lambda: np.array([algo.predict(u, i).est for u, i, _ in valid])

def cornac(train, valid):
    from cornac.data import Dataset
    from cornac.models import MF
    data = Dataset.from_uir([(int(u), int(i), r) for u, i, r in train], seed=0)
    algo = MF(k=50, max_iter=50, learning_rate=.01, lambda_reg=.1, use_bias=True, seed=0, num_threads=1)
    def score(u, i):
        u, i = data.uid_map.get(int(u)), data.iid_map.get(int(i))
        return data.global_mean if u is None or i is None else float(algo.score(u, i))
    return lambda: algo.fit(data), lambda: np.clip([score(u, i) for u, i, _ in valid], 1, 5)

def lenskit(train, valid):
    import pandas as pd
    from lenskit.als import BiasedMFScorer
    from lenskit.data import ItemList, from_interactions_df
    from lenskit.pipeline import predict_pipeline

    data = from_interactions_df(
        pd.DataFrame(train, columns=['user_id', 'item_id', 'rating']).astype({'user_id': int, 'item_id': int})
    )
    pipe = predict_pipeline(BiasedMFScorer(features=50))
    def predict():
        res = np.empty(len(valid))
        for user in np.unique(valid[:,0]):
            rows = np.flatnonzero(valid[:,0] == user)
            res[rows] = pipe.run(
                'rating-predictor', query=int(user), items=ItemList(item_ids=valid[rows, 1].astype(int))
            ).scores()
        return np.nan_to_num(res, nan=train[:,2].mean())
    return lambda: pipe.train(data), predict

def cmfrec(train, valid):
    import pandas as pd
    from cmfrec import CMF
    algo = CMF(k=40, method='als', nthreads=1, verbose=False)
    df = pd.DataFrame(train, columns=['UserId', 'ItemId', 'Rating'])
    return lambda: algo.fit(df), lambda: np.nan_to_num(algo.predict(valid[:,0], valid[:,1]), nan=train[:,2].mean())

def _myfm(train, valid, histories, n_iter=100):
    from myfm import MyFMRegressor, RelationBlock
    from scipy.sparse import csr_matrix, hstack, identity, vstack
    ids = [np.unique(train[:,k]) for k in (0, 1)]
    def rows(x, k):
        "The row of each id of the training part; 0 for those that are new."
        at = np.searchsorted(ids[k], x[:,k]).clip(max=len(ids[k])-1)
        return np.where(ids[k][at] == x[:,k], at + 1, 0)
    pairs = csr_matrix((np.ones(len(train)), [rows(train, k) - 1 for k in (0, 1)]))  # who rated what
    def features(k):
        "The id, and what it rated or who rated it, over the root of their number; nothing in row 0."
        history = pairs if k == 0 else pairs.T.tocsr()
        scaled = history.multiply(1/np.sqrt(np.maximum(history.sum(1), 1))).tocsr()
        res = hstack([identity(len(ids[k])), *([scaled] if histories else [])], format='csr')
        return vstack([csr_matrix((1, res.shape[1])), res], format='csr')
    blocks = [features(k) for k in (0, 1)]
    def design(x): return [RelationBlock(rows(x, k).tolist(), blocks[k]) for k in (0, 1)]
    algo, x, test = MyFMRegressor(rank=10, random_seed=0), design(train), design(valid)
    shapes = [len(o) for k in (0, 1) for o in (ids[k], *([ids[1-k]] if histories else []))]
    def fit(): algo.fit(None, train[:,2], X_rel=x, n_iter=n_iter, n_kept_samples=n_iter*9//10, group_shapes=shapes)
    return fit, lambda: algo.predict(None, test)

def myfm(train, valid): return _myfm(train, valid, False)
def myfm_histories(train, valid): return _myfm(train, valid, True)
def myfm_histories_40(train, valid): return _myfm(train, valid, True, 40)

PEERS = {o.__name__: o for o in (ours, ours_4, ours_sgd, plain, fastai, surprise, cornac, lenskit, cmfrec, myfm,
                                 myfm_histories, myfm_histories_40)}

def measure(name, folder):
    "In the library's Python: print the error and the seconds, or what is missing."
    train, valid = (np.load(f'{folder}/{o}.npy') for o in ('train', 'valid'))
    try: fit, predict = PEERS[name](train, valid)
    except ImportError as e: return print(json.dumps({'missing': str(e)}))
    start = time.process_time()
    fit()
    cpu_s = time.process_time() - start
    print(json.dumps({'rmse': float(np.sqrt(np.mean((predict() - valid[:,2])**2))), 'cpu_s': cpu_s}))

def split():
    "The ratings that train and those that test: arrays of user, item, rating."
    import pandas as pd
    from fastai.data.external import URLs, untar_data

    from collab_pretrained.data.loaders import CollabDataLoaders
    df = pd.read_csv(untar_data(URLs.ML_100k)/'u.data', sep='\t', header=None, names=['user', 'item', 'rating', 'time'])
    dls = CollabDataLoaders.from_df(df, seed=42)
    return [o.items.to_numpy(dtype=np.float64) for o in (dls.train_ds, dls.valid_ds)]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--python', nargs='*', default=[], help='library=the Python it is installed in')
    p.add_argument('--only', nargs='*', default=list(PEERS), choices=list(PEERS))
    p.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure: return measure(*args.measure)
    pythons = dict(o.split('=', 1) for o in args.python)
    with tempfile.TemporaryDirectory() as folder:
        for name, part in zip(('train', 'valid'), split(), strict=True): np.save(f'{folder}/{name}.npy', part)
        print(f'{"":18}{"RMSE":>8}{"CPU s":>8}')
        for name in args.only:
            res = subprocess.run(
                [pythons.get(name, sys.executable), __file__, '--measure', name, folder], capture_output=True, text=True
            )
            last = res.stdout.strip().splitlines()[-1:] or [
                json.dumps({'missing': (res.stderr.strip().splitlines() or ['no answer'])[-1]})
            ]
            o = json.loads(last[0]) if last[0].startswith('{') else {'missing': last[0]}
            print(
                f'{name:18}' + (f'missing: {o["missing"]}' if 'missing' in o else f'{o["rmse"]:8.4f}{o["cpu_s"]:8.2f}'),
                flush=True,
            )


if __name__ == '__main__': main()
