"""Milliseconds of `fold_in`, and of a new user's list, from a table of 20 ratings.

Usage: python benchmarks/latency.py [--calls 300] [--data ml-100k planted]   (a minute; one thread) One new user with 20
ratings in a pandas DataFrame, made anew for each call (that isn't counted), 50 factors: on MovieLens 100K after
`fit_als`, and on 60,000 planted items. `read` is what making the rows of that table takes alone (`predict`'s way into
the model), by which the machine's speed just now can be told. p50 and p99 by the wall clock, and the median CPU time.
Targets: `fold_in` 1.5 and 5 ms on MovieLens 100K, p99 10 ms with 60,000 items; a list in 10 ms."""

import argparse
import os

os.environ['OMP_NUM_THREADS'] = '1'
import time  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.data.external import URLs, untar_data  # noqa: E402

from collab_pretrained.all import CollabDataLoaders, collab_learner  # noqa: E402
from collab_pretrained.data.ratings import read_ratings  # noqa: E402

def ml_100k():
    return pd.read_csv(untar_data(URLs.ML_100k)/'u.data', sep='\t', names=['user', 'item', 'rating'], usecols=range(3))

def planted(n_users=2000, n_items=60_000, n=300_000):
    "Ratings of many items; each has at least one."
    rng = np.random.default_rng(0)
    items = np.append(np.arange(n_items), rng.integers(0, n_items, n - n_items))
    df = pd.DataFrame({'user': rng.integers(0, n_users, n), 'item': items, 'rating': rng.integers(1, 6, n)})
    return df.drop_duplicates(['user', 'item'])

DATA = {'ml-100k': ml_100k, 'planted': planted}

def solved(df, k=50, n_rounds=5):
    learn = collab_learner(CollabDataLoaders.from_df(df, valid_pct=0., seed=0), n_factors=k)
    with learn.no_bar(), learn.no_logging(): return learn.fit_als(n_rounds)

def newcomer(items, rng, new=-1):
    return pd.DataFrame({'user': new, 'item': rng.choice(items, 20, replace=False), 'rating': rng.integers(1, 6, 20)})

def clocked(way, tables):
    "Milliseconds by the wall and of CPU of each call."
    res = []
    for table in tables:
        at, cpu = time.perf_counter(), time.process_time()
        way(table)
        res.append((time.perf_counter() - at, time.process_time() - cpu))
    return np.array(res)*1e3

def measure(name, n_calls):
    df = DATA[name]()
    learn, rng, items = solved(df), np.random.default_rng(1), df['item'].unique()
    ways = {'read': lambda o: read_ratings(o, 'user', 'item', 'rating'), 'fold_in': lambda o: learn.fold_in(o),
            'recommend(ratings=)': lambda o: learn.recommend(ratings=o)}
    with learn.no_bar():
        for what, way in ways.items():
            clocked(way, [newcomer(items, rng) for _ in range(20)])
            ms = clocked(way, [newcomer(items, rng) for _ in range(n_calls)])
            p50, p99 = np.percentile(ms[:,0], [50, 99])
            print(f'{name:9}{len(items):8,} items  {what:20} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  '
                  f'CPU p50 {np.median(ms[:,1]):6.2f} ms', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', nargs='+', default=list(DATA), choices=list(DATA))
    p.add_argument('--calls', type=int, default=300)
    args = p.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    for name in args.data: measure(name, args.calls)

if __name__ == '__main__': main()
