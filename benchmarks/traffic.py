"""What two processes send one another in a training step, counted on the loopback, against what `tutorials/scale`
reckons.

Usage: torchrun --nproc-per-node 2 benchmarks/traffic.py [--users 90000] [--items 10000] [--bs 4096] [--steps 6]   (a
minute; Linux only, and a quiet loopback) Megabytes a step that all processes together send: shared batches with whole
gradients, with gradients by row, and tables in pieces. Gloo makes the sum of pieces by a sum for all, hence the second
figure there."""

import argparse
import re
import warnings
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pandas as pd
import torch.distributed as dist
from fastai.callback.core import Callback

from collab_pretrained.all import CollabDataLoaders, collab_learner
from collab_pretrained.scale import shard_embeddings

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, n in dict(users=90_000, items=10_000, bs=4096, steps=6).items():
    parser.add_argument(f'--{name}', type=int, default=n)
args = parser.parse_args()
warnings.simplefilter('ignore')

def sent(): return int(re.search(r'lo:\s*(\d+)', Path('/proc/net/dev').read_text())[1])

class Count(Callback):
    "Bytes a step, from the second on."
    order, run_valid = 95, False
    def before_train(self): self.n = 0
    def before_batch(self):
        self.n += 1
        if self.n > 2: return
        dist.barrier()
        self.start = sent()
    def after_train(self):
        dist.barrier()
        self.mb = (sent() - self.start)/(self.n - 1)/1e6

rng, n = np.random.default_rng(0), args.users + args.bs*args.steps*2
df = pd.DataFrame(
    {
        'user': np.arange(n) % args.users,
        'item': rng.integers(args.items, size=n),
        'rating': rng.integers(1, 6, n).astype(float),
    }
).drop_duplicates(['user', 'item'])
for way, around in (
    ('shared batches', 2 * (args.users + args.items)),
    ('shared batches, by row', 2 * args.bs),
    ('tables in pieces', 4 * args.bs),
):
    dls = CollabDataLoaders.from_df(df, bs=args.bs, n=args.bs*args.steps, seed=42, valid_pct=.01, path=gettempdir())
    learn = collab_learner(dls, n_factors=50, y_range=(0, 5.5), sparse=way.endswith('by row'))
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        if way == 'tables in pieces': shard_embeddings(learn)
        learn.fit(1, 1e-3, cbs=(count := Count()))
        reckoned, first = around*204*(dist.get_world_size()-1)/1e6, not dist.get_rank()
    if first:
        print(
            f'{way}: {count.mb:.1f} MB counted, {reckoned:.1f} reckoned'
            + (f', {1.5 * reckoned:.1f} by gloo' if way == 'tables in pieces' else '')
        )
