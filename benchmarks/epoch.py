"""What an epoch costs inside a `Learner`, against fastai's: training and validation, with the recorder, a metric and,
with `--cycle`, the scheduler.

Usage: python benchmarks/epoch.py [--bs 64 512 4096] [--repeat 5] [--cycle]   (MovieLens 100K; some minutes, one thread)
Figures are medians of epochs taken in turn: fastai's learner on fastai's loaders, fastai's learner on our loaders, our
learner on our loaders, and a loop in plain torch with its fused AdamW on the same tensors, without a learner. Targets:
our epoch at least 4.5, 4 and 3.2 times as fast as fastai's at bs=64, 512 and 4096."""

import argparse
import os
import time
import warnings

os.environ['OMP_NUM_THREADS'] = '1'
from statistics import median

import pandas as pd
import torch
from fastai import collab
from fastai.data.external import URLs, untar_data
from fastai.metrics import rmse

from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.factory import collab_learner

MODEL = dict(n_factors=50, y_range=(0, 5.5))

def fit(learn, cycle):
    "An epoch of a learner as a function."
    def epoch():
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 5e-3) if cycle else learn.fit(1, 5e-3)
    return epoch

def plain(dls, bs):
    "An epoch of a loop in plain torch as a function."
    model = collab.EmbeddingDotBias.from_classes(MODEL['n_factors'], dls.classes, y_range=MODEL['y_range'])
    (x, y), (valid_x, valid_y) = ((x, y.squeeze(1)) for x, y in (dls.train_ds.tensors, dls.valid_ds.tensors))
    opt, loss_func = (
        torch.optim.AdamW(model.parameters(), 5e-3, (0.9, 0.99), 1e-5, 0.01, fused=True),
        torch.nn.functional.mse_loss,
    )

    def epoch():
        order = torch.randperm(len(x))
        for xb, yb in zip(x[order].split(bs), y[order].split(bs), strict=True):
            loss_func(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
        with torch.no_grad(): loss_func(model(valid_x), valid_y).item()
    return epoch

def seconds(epoch):
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--bs', type=int, nargs='*', default=[64, 512, 4096])
    p.add_argument('--repeat', type=int, default=5)
    p.add_argument('--cycle', action='store_true', help='fit_one_cycle, and not fit')
    args = p.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    df = pd.read_csv(untar_data(URLs.ML_100k)/'u.data', sep='\t', header=None, names=['user', 'item', 'rating', 'time'])
    print(f'{"fit_one_cycle" if args.cycle else "fit"}, seconds an epoch')
    for bs in args.bs:
        theirs, ours = (o.from_df(df, seed=42, bs=bs) for o in (collab.CollabDataLoaders, CollabDataLoaders))
        epochs = {'fastai': fit(collab.collab_learner(theirs, metrics=rmse, **MODEL), args.cycle),
                  'fastai on our loaders': fit(collab.collab_learner(ours, metrics=rmse, **MODEL), args.cycle),
                  'ours': fit(collab_learner(ours, metrics=rmse, **MODEL), args.cycle), 'plain torch': plain(ours, bs)}
        runs = [{k: seconds(o) for k, o in epochs.items()} for _ in range(args.repeat)]
        s = {k: median(r[k] for r in runs) for k in epochs}
        print(f'bs={bs:<5}' + ''.join(f'{k}: {o:.3f} ({s["fastai"]/o:.1f}x)   ' for k, o in s.items()), flush=True)

if __name__ == '__main__': main()
