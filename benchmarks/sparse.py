"""What a step costs where the tables are large: by row, against whole tables and against a plain loop with torch's
SparseAdam.

Usage: python benchmarks/sparse.py [--users 160000] [--items 60000] [--bs 512 4096] [--steps 100] [--repeat 5] [--big
1000000]   (minutes, one thread; memory on Linux only) Milliseconds a training step, medians of runs taken in turn:
fastai's learner, ours over whole tables, ours with `sparse=True`, and a loop in plain torch with SparseAdam and no
weight decay. Then one epoch of `--big` users x as many items, 50 wide, in a process of its own: its peak of memory
beyond the model's tables and the optimizer's two tables of moments. Targets: `sparse=True` at most 1.5 times the plain
loop; less than 2 GiB."""

import argparse
import os
import subprocess
import sys
import time
import warnings

os.environ['OMP_NUM_THREADS'] = '1'
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from fastai import collab

from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.factory import collab_learner

MODEL = dict(n_factors=50, y_range=(0, 5.5))

def loaders(n, n_users, n_items, bs):
    "`n` ratings, over a vocabulary of `n_users` and `n_items`."
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        {
            'user': rng.integers(n_users, size=n),
            'item': (n_items * rng.random(n) ** 2).astype(int),
            'rating': rng.integers(1, 6, n),
        }
    )
    return CollabDataLoaders.from_df(df, valid_pct=.01, seed=0, bs=bs, vocab=[np.arange(n_users), np.arange(n_items)])

def fit(learn):
    "A training part of an epoch as a function."
    learn.fit(1, 5e-3)
    def epoch(): learn._do_epoch_train()
    learn.n_epoch, learn.epoch = 1, 0
    learn('before_fit')
    learn('before_epoch')
    return epoch

def plain(dls, bs):
    model = collab.EmbeddingDotBias.from_classes(MODEL['n_factors'], dls.classes, y_range=MODEL['y_range'])
    for o in model.children(): o.sparse = True
    x, y = dls.train_ds.tensors
    opt = torch.optim.SparseAdam(model.parameters(), 5e-3, (.9, .99), 1e-5)
    def epoch():
        order = torch.randperm(len(x))
        for xb, yb in zip(x[order].split(bs), y[order].split(bs), strict=True):
            torch.nn.functional.mse_loss(model(xb), yb.squeeze(1)).backward()
            opt.step()
            opt.zero_grad()
    epoch()
    return epoch

def seconds(epoch):
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start

def steps(n_users, n_items, bs, n_steps, repeat):
    dls = loaders(int(bs*n_steps/.99), n_users, n_items, bs)
    learns = {
        'fastai': collab.collab_learner(dls, wd=0.1, **MODEL),
        'whole tables': collab_learner(dls, wd=0.1, sparse=False, **MODEL),
        'sparse=True': collab_learner(dls, wd=0.1, sparse=True, **MODEL),
    }
    for o in learns.values():
        o.remove_cb(o.progress)
        o.logger = lambda *_: None
    epochs = {**{k: fit(o) for k, o in learns.items()}, 'SparseAdam': plain(dls, bs)}
    runs = [{k: seconds(o) for k, o in epochs.items()} for _ in range(repeat)]
    ms = {k: 1000*median(r[k] for r in runs)/len(dls.train) for k in epochs}
    print(
        f'bs={bs:<5}'
        + ''.join(f'{k}: {o:.2f} ms   ' for k, o in ms.items())
        + f'sparse=True is {ms["sparse=True"] / ms["SparseAdam"]:.2f} times SparseAdam',
        flush=True,
    )


def status(key):
    return next(
        int(o.split()[1]) * 1024 for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(key)
    )


def measure(n):
    "In a process of its own: print the peak of an epoch beyond tables and moments, and its seconds."
    dls = loaders(500_000, n, n, 4096)
    learn = collab_learner(dls, wd=.1, **MODEL)
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    before = status('VmRSS')
    with learn.no_bar(), learn.no_logging(): s = seconds(lambda: learn.fit_one_cycle(1, 5e-3))
    moments = sum(2*p.nbytes for p in learn.model.parameters())
    print((status('VmHWM') - before - moments)/2**30, status('VmHWM')/2**30, s)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('users', 160_000), ('items', 60_000), ('steps', 100), ('repeat', 5), ('big', 1_000_000)):
        p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--bs', type=int, nargs='*', default=[512, 4096])
    p.add_argument('--measure', type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    if args.measure:
        measure(args.measure)
    else:
        print(f'{args.users} users, {args.items} items, 50 wide')
        for bs in args.bs:
            steps(args.users, args.items, bs, args.steps, args.repeat)
        if args.big:
            res = subprocess.run(
                [sys.executable, '-W', 'ignore', __file__, '--measure', str(args.big)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            print(
                '{} users x {} items: {:.2f} GiB beyond tables and moments ({:.2f} GiB in all), '
                'an epoch of 500,000 ratings in {:.0f} s'.format(
                    args.big, args.big, *map(float, res)
                )
            )
