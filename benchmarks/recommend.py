"""Users a second of `learn.recommend`, against a plain matmul and topk in chunks of 64 users, which leaves out no seen
item and breaks no ties.

Usage: python benchmarks/recommend.py [--users 6400] [--items 60000] [--factors 50] [--rated 100] [--device cpu]
[--index]   (a minute; one thread) Each way runs in turn in the same process, `--repeat` times; the figure is the
median, and the fastest run says what an idle machine would do. Memory is what a process of its own needs at its peak,
for the users given and for a tenth of them, less what it held before. `--index` also asks faiss and usearch, where they
are installed, for the exported vectors. Targets: 4,500 users/s for 60,000 items x 50 on one thread where matmul and
topk reach 4,750 (0.95 of it), 7,400 where possible (1.56); memory that doesn't grow with the users, but for the
answers."""

import argparse
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('OMP_NUM_THREADS', '1')
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch

from collab_pretrained.core import NA
from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.factory import collab_learner
from collab_pretrained.serve.recommend import recommend  # noqa: F401, puts the methods on the learner

def make_learner(args):
    "A learner with random vectors, and `--rated` random ratings of each user."
    rng, n = np.random.default_rng(0), args.users*args.rated
    df = pd.DataFrame(
        {
            'user': np.repeat(np.arange(args.users), args.rated),
            'item': rng.integers(args.items, size=n),
            'rating': np.float32(4),
        }
    )
    vocab = {'user': [NA, *range(args.users)], 'item': [NA, *range(args.items)]}
    dls = CollabDataLoaders.from_df(df.drop_duplicates(['user', 'item']), vocab=vocab, seed=0, device=args.device)
    torch.manual_seed(0)
    learn = collab_learner(dls, n_factors=args.factors, y_range=(0, 5.5))
    for o in learn.model.parameters(): torch.nn.init.normal_(o)
    learn.model.to(args.device)
    return learn

@torch.no_grad()
def plain(model, k, n_users):
    "What one writes by hand."
    res = []
    for rows in torch.arange(1, n_users+1, device=model.i_weight.weight.device).split(64):
        scores = model.u_weight(rows) @ model.i_weight.weight.T + model.i_bias.weight.T
        res.append(scores.topk(k))
    return torch.cat([o.values for o in res]).cpu(), torch.cat([o.indices for o in res]).cpu()

def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def speed(args):
    learn = make_learner(args)
    ways = {'matmul and topk': lambda: plain(learn.model, 10, args.users),
            'recommend': lambda: learn.recommend(),
            'recommend, seen ones too': lambda: learn.recommend(exclude_seen=False)}
    with learn.no_bar():
        for f in ways.values(): f()
        runs = [{k: seconds(f) for k, f in ways.items()} for _ in range(args.repeat)]
    print(
        f'{args.users:,} users, {args.items:,} items x {args.factors} and biases, top 10, '
        f'{args.device}, {torch.get_num_threads()} thread(s)'
    )
    for k in ways:
        s, fastest = median(r[k] for r in runs), min(r[k] for r in runs)
        ratio = median(r['matmul and topk']/r[k] for r in runs)
        print(
            f'{k:26}{args.users / s:10,.0f} users/s   {ratio:5.2f} x matmul and topk   '
            f'(fastest run {args.users / fastest:,.0f})',
            flush=True,
        )
    return learn

def peak_mb(args, users):
    "Peak memory of `recommend` for `users` of the users, in MB, measured in a process of its own."
    cmd = [
        sys.executable,
        __file__,
        '--memory',
        str(users),
        *(f'--{k}={getattr(args, k)}' for k in ('users', 'items', 'factors', 'rated', 'device')),
    ]
    return float(subprocess.run(cmd, capture_output=True, text=True, check=True).stdout)

def status_mb(name):
    return next(
        int(o.split()[1]) / 1024 for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(name)
    )


def memory(args):
    learn = make_learner(args)
    Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak starts again from here
    before = status_mb('VmRSS')
    with learn.no_bar(): learn.recommend(range(args.memory))
    print(status_mb('VmHWM') - before)

def indexes(learn):
    "Whether inner-product indexes give the order of `recommend`, and how fast."
    with tempfile.TemporaryDirectory() as tmp: users, items = (pd.read_parquet(o) for o in learn.export_vectors(tmp))
    users = users.head(640)
    q, x = (np.stack(o.vector) for o in (users, items))
    ours = learn.recommend(users.id, exclude_seen=False)['item'].to_numpy().reshape(-1, 10)
    def faiss_flat():
        import faiss

        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        start = time.perf_counter()
        return index.search(q, 10)[1], time.perf_counter() - start
    def usearch_exact():
        from usearch.index import MetricKind, search
        start = time.perf_counter()
        return search(x, q, 10, MetricKind.IP, exact=True).keys, time.perf_counter() - start
    for name, ask in (('faiss IndexFlatIP', faiss_flat), ('usearch, exact', usearch_exact)):
        try:
            found, s = ask()
        except ImportError as e:
            print(f'{name:26}{e}')
            continue
        print(
            f'{name:26}{len(q) / s:10,.0f} users/s   '
            f'{np.mean(items.id.to_numpy()[found.astype(int)] == ours):.4%} of places as in recommend',
            flush=True,
        )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ('users', 6400),
        ('items', 60_000),
        ('factors', 50),
        ('rated', 100),
        ('repeat', 5),
        ('memory', 0),
    ):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--index', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory: sys.exit(memory(args))
    learn = speed(args)
    if args.index: indexes(learn)
    if args.device == 'cpu':
        print(
            f'memory: {peak_mb(args, args.users // 10):.0f} MB for {args.users // 10:,} users, '
            f'{peak_mb(args, args.users):.0f} MB for {args.users:,}'
        )
