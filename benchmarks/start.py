"""Does gradient descent before the first round bring `fit_als` to an error sooner?

Usage: python benchmarks/start.py [--data ml-100k 1M 20M]   (a minute without 20M; one thread)
Each line is a run: the epochs of `fit_one_cycle` before `fit_als`, then the CPU seconds of training so far and the RMSE
of a held-out tenth, after each epoch and round. 20 factors; 1M and 20M are planted, with 8 true factors."""

import argparse
import os

os.environ['OMP_NUM_THREADS'] = '1'
import time  # noqa: E402
import warnings  # noqa: E402

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from als import planted  # noqa: E402
from fastai.callback.core import Callback, CancelValidException  # noqa: E402
from fastai.data.external import URLs, untar_data  # noqa: E402

from collab_pretrained.all import CollabDataLoaders, collab_learner  # noqa: E402

def ml_100k():
    return pd.read_csv(untar_data(URLs.ML_100k)/'u.data', sep='\t', names=['user', 'item', 'rating'], usecols=range(3))

def of_size(n, n_users, n_items):
    df = pd.DataFrame(dict(zip(('user', 'item', 'rating'), planted(n, n_users, n_items), strict=True)))
    return df.drop_duplicates(['user', 'item'])

DATA = {'ml-100k': ml_100k, '1M': lambda: of_size(10**6, 6000, 4000), '20M': lambda: of_size(2*10**7, 160_000, 60_000)}

class Clock(Callback):
    "Seconds of CPU in training, and the error after each part of it."
    seconds = 0.
    def __init__(self): self.rows, self.start = [], time.process_time()
    def after_train(self):
        self.seconds += time.process_time() - self.start
        x, y = self.learn.dls.valid_ds.tensors
        with torch.no_grad(): miss = self.learn.model(x).flatten() - y.flatten()
        self.rows.append(f'{self.seconds:.2f} s {miss.square().mean().sqrt():.4f}')
        self.start = time.process_time()
    def before_validate(self): raise CancelValidException

def run(df, epochs, n_rounds):
    dls = CollabDataLoaders.from_df(df, valid_pct=.1, seed=0, bs=1024 if len(df) < 5e5 else 8192)
    learn, clock = collab_learner(dls, n_factors=20), Clock()
    with learn.no_bar(), learn.no_logging():
        if epochs: learn.fit_one_cycle(epochs, 5e-3, cbs=clock)
        learn.fit_als(n_rounds, cbs=clock)
    return '  '.join(clock.rows)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', nargs='+', default=['ml-100k', '1M'], choices=list(DATA))
    p.add_argument('--epochs', type=int, nargs='+', default=[0, 1, 3])
    p.add_argument('--rounds', type=int, default=8)
    args = p.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    for name in args.data:
        df = DATA[name]()
        for epochs in args.epochs: print(name, f'{epochs} epochs:', run(df, epochs, args.rounds), flush=True)

if __name__ == '__main__': main()
