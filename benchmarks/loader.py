"""What the loaders cost, against fastai's two: the stock one, which draws rows with replacement, and
`dl_type=TabDataLoader`, which visits each once.

Usage: python benchmarks/loader.py [--rows 100000] [--repeat 3] [--big 1000000 10000000]   (some minutes, one thread;
memory on Linux only) Figures are medians of runs taken in turn. Training and validation are timed with our loaders in
fastai's learner, and in the library's own. `from_df` runs in processes of their own, once for 5M rows and more; CPU is
what the process used, which other work on the machine changes less than the time; memory is the peak while it runs,
less what was held before. Text ids are user1234 and item567. Targets: the loader alone at least 50 times fastai's rows
per second at bs=64; an epoch at least 1.9 times as fast at every bs; validation at least 5 times at bs=64; `from_df` on
1M and 10M rows at least 5 times as fast, with at most 40% of the memory."""

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
from fastai.collab import CollabDataLoaders as FastaiDataLoaders
from fastai.collab import collab_learner
from fastai.tabular.core import TabDataLoader

from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.factory import collab_learner as our_learner

KINDS = {'fastai': FastaiDataLoaders.from_df,
         'TabDataLoader': lambda df, **kw: FastaiDataLoaders.from_df(df, dl_type=TabDataLoader, **kw),
         'ours': CollabDataLoaders.from_df}

def ratings(n, n_users, n_items, text=False):
    """`n` ratings by `n_users` of `n_items`, some of them far more popular than others; no pair twice in a small table,
    few in a large one."""
    rng = np.random.default_rng(0)
    pairs = (
        rng.choice(n_users * n_items, n, replace=False)
        if n_users * n_items < 10**8
        else rng.integers(0, n_users * n_items, n)
    )
    df = pd.DataFrame(
        {
            'user': pairs // n_items + 1,
            'item': (n_items * (pairs % n_items / n_items) ** 2).astype(int) + 1,
            'rating': rng.integers(1, 11, n) / 2,
        }
    )
    return df.assign(user='user' + df.user.astype(str), item='item' + df.item.astype(str)) if text else df

def seconds(f, *args):
    start = time.perf_counter()
    f(*args)
    return time.perf_counter() - start

def compare(title, f, subjects, repeat, n_rows):
    """Time `f` on each of `subjects` in turn, `repeat` times; print rows per second and how many times fastai's ours
    are."""
    runs = [{k: seconds(f, o) for k, o in subjects.items()} for _ in range(repeat)]
    s = {k: median(r[k] for r in runs) for k in subjects}
    print(
        f'{title:34}'
        + ''.join(f'{n_rows / o:14,.0f}' for o in s.values())
        + ''.join(f'{s["fastai"] / s[k]:9.1f}x' for k in s if 'our' in k),
        flush=True,
    )


def drain(dl):
    for _ in dl: pass

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 5e-3)

def validate(learn):
    with learn.no_bar(): learn.validate()

def learners(dls):
    "A learner on each of `dls`, and the library's own on ours."
    kw = dict(n_factors=50, y_range=(0, 5.5))
    return {**{k: collab_learner(o, **kw) for k, o in dls.items()}, 'our learner': our_learner(dls['ours'], **kw)}

def feed(n, repeat):
    title = f'{n:,} ratings; rows per second'
    print(f'{title:34}' + ''.join(f'{k:>14}' for k in [*KINDS, 'our learner']) + '  times fastai: ours, our learner')
    df = ratings(n, 943, 1682)
    for bs in (64, 512, 4096):
        dls = {k: make(df, seed=0, bs=bs, val_bs=bs) for k, make in KINDS.items()}
        learns = learners(dls)
        n_train, n_valid = (len(o) for o in (dls['ours'].train_ds, dls['ours'].valid_ds))
        compare(f'loader alone, bs={bs}', drain, {k: o.train for k, o in dls.items()}, repeat, n_train)
        compare(f'epoch and validation, bs={bs}', fit, learns, repeat, n)
        compare(f'validation, val_bs={bs}', validate, learns, repeat, n_valid)
    learns = learners({k: make(df, seed=0, bs=64) for k, make in KINDS.items()})
    compare('validation, bs=64, default val_bs', validate, learns, repeat, n_valid)

def read_status(key):
    return next(
        int(o.split()[1]) * 1024 for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(key)
    )


def measure(kind, n, text):
    "In a process of its own: print the seconds, those of the CPU, and the peak bytes of one `from_df`."
    df = ratings(n, n//50, n//500, text)
    before = read_status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    cpu_s = time.process_time()
    s = seconds(lambda: KINDS[kind](df, seed=0))
    print(s, time.process_time() - cpu_s, read_status('VmHWM') - before)

def from_df(sizes, repeat):
    print(
        f'\n{"from_df: time, CPU, memory":34}'
        + ''.join(f'{k:>31}' for k in KINDS if k != 'TabDataLoader')
        + '   against fastai'
    )
    for n, text in [(n, text) for n in sizes for text in (False, True)]:
        res = {}
        for kind in ('fastai', 'ours'):
            cmd = [sys.executable, '-W', 'ignore', __file__, '--measure', kind, str(n), str(text)]
            runs = [
                [float(o) for o in subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.split()]
                for _ in range(repeat if n < 5e6 else 1)
            ]
            res[kind] = [median(o) for o in zip(*runs, strict=True)]
        by = [a/b for a, b in zip(*res.values(), strict=True)]
        title = f'{n:,} rows, {"text" if text else "integer"} ids'
        print(f'{title:34}' + ''.join(f'{s:9.2f} s {cpu_s:7.2f} s {m/2**20:7.0f} MiB' for s, cpu_s, m in res.values())
              + f'   {by[0]:.1f}x as fast, CPU {by[1]:.1f}x, {100/by[2]:.0f}% of the memory', flush=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', type=int, default=100_000)
    p.add_argument('--repeat', type=int, default=3)
    p.add_argument('--big', type=int, nargs='*', default=[1_000_000, 10_000_000])
    p.add_argument('--measure', nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    if args.measure: measure(args.measure[0], int(args.measure[1]), args.measure[2] == 'True')
    else:
        feed(args.rows, args.repeat)
        from_df(args.big, args.repeat)
