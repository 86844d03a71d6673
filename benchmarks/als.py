"""Seconds and memory of a round of `fit_als` over a million ratings, beside implicit's alternating least squares.

Usage: python benchmarks/als.py [--factors 20 50] [--threads 1 2] [--processes 1 2] [--rounds 6] [--ratings 1000000]
[--users 6000] [--items 4000]   (a minute; each row is a process of its own, or as many as it says, by torchrun)
Planted ratings with 8 true factors. `fit_als` is called on a learner; the first round includes sorting; a round is the
median of the others, by the wall, and CPU is their mean in one process. implicit (where it is installed) fits the same
pairs as clicks, with 3 steps of conjugate gradients a row; `ratio` is our round over its, in the same run. Memory is
the peak while training less what was held before, over the size of the ratings (two int64 and a float32 each). Targets,
one thread: 0.7 s (20 factors), 1.8 s (50); two threads 1.7 times as fast, two processes 1.6 times with 4M ratings;
three times the ratings."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

def planted(n, n_users, n_items):
    "User, item and rating of each of `n` ratings, some users and items having many more than others."
    import numpy as np
    r = np.random.default_rng(0)
    def draw(m, power):
        p = r.random(m)**power + .02
        return r.choice(m, n, p=p/p.sum())
    users, items = draw(n_users, 2), draw(n_items, 3)
    u, v = r.normal(0, .5, (n_users, 8)), r.normal(0, .5, (n_items, 8))
    return users, items, (3.5 + (u[users]*v[items]).sum(1) + r.normal(0, .8, n)).astype(np.float32)

def memory(what):
    "Of this process, in bytes: 'VmHWM' is the most since `forget_peak`, 'VmRSS' that of now."
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(o.split()[1])*1024 for o in lines if o.startswith(what))

def forget_peak(): Path('/proc/self/clear_refs').write_text('5')

def ours(data, args):
    import pandas as pd
    import torch
    from fastai.callback.core import Callback

    from collab_pretrained.all import CollabDataLoaders, collab_learner
    torch.set_num_threads(args.threads[0])
    class Clock(Callback):
        def before_fit(self): self.at, self.cpu = [time.perf_counter()], []
        def after_epoch(self): self.at.append(time.perf_counter()), self.cpu.append(time.process_time())
    def learner(n):
        df = pd.DataFrame(dict(zip(('user', 'item', 'rating'), (o[:n] for o in data), strict=True)))
        return collab_learner(CollabDataLoaders.from_df(df, valid_pct=0., seed=0), n_factors=args.factors[0])
    def fit(learn, n_rounds, **kwargs):
        with learn.no_bar(), learn.no_logging(): learn.fit_als(n_rounds, **kwargs)
    fit(learner(1000), 1)
    learn, clock = learner(None), Clock()
    with learn.distrib_ctx():
        forget_peak()
        before = memory('VmRSS')
        fit(learn, args.rounds, cbs=clock)
    seconds = [b - a for a, b in zip(clock.at, clock.at[1:], strict=False)]
    size = 20*len(data[0])
    return {'first': seconds[0], 'round': median(seconds[1:]), 'cpu': (clock.cpu[-1] - clock.cpu[0])/(args.rounds - 1),
            'memory': (memory('VmHWM') - before)/size}

def implicit(data, args):
    import numpy as np
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    users, items, _ = data
    pairs = csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)))
    model = AlternatingLeastSquares(factors=args.factors[0], iterations=args.rounds, num_threads=args.threads[0],
                                    random_state=0)
    at, cpu = [], []
    forget_peak()
    before, start = memory('VmRSS'), time.perf_counter()
    model.fit(pairs, show_progress=False, callback=lambda *_: (at.append(time.perf_counter()),
                                                               cpu.append(time.process_time())))
    seconds = [b - a for a, b in zip([start, *at], at, strict=False)]
    return {'first': seconds[0], 'round': median(seconds[1:]), 'cpu': (cpu[-1] - cpu[0])/(args.rounds - 1),
            'memory': (memory('VmHWM') - before)/(20*len(users))}

def measured(way, k, n_threads, n_processes, args):
    "The figures of one process; None where the library is not there."
    call = [sys.executable, __file__, '--way', way, '--factors', str(k), '--threads', str(n_threads),
            *(f'--{o}={getattr(args, o)}' for o in ('rounds', 'ratings', 'users', 'items'))]
    if n_processes > 1: call[1:1] = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n_processes}']
    env = {**os.environ, **dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')}
    if way == 'ours': env['OMP_NUM_THREADS'] = str(n_threads)
    res = subprocess.run(call, capture_output=True, text=True, env=env)
    if 'ModuleNotFoundError' in res.stderr: return None
    if res.returncode: raise SystemExit(res.stderr)
    return json.loads(res.stdout.strip().splitlines()[-1])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--factors', type=int, nargs='+', default=[20, 50])
    p.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    p.add_argument('--processes', type=int, nargs='+', default=[1])
    for name, n in dict(rounds=6, ratings=1_000_000, users=6000, items=4000).items():
        p.add_argument(f'--{name}', type=int, default=n)
    p.add_argument('--way', choices=['ours', 'implicit'], help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.way:
        res = globals()[args.way](planted(args.ratings, args.users, args.items), args)
        return os.environ.get('RANK', '0') == '0' and print(json.dumps(res), flush=True)
    print(f'{"factors":>7}{"threads":>8}{"processes":>10}  {"":10}'
          f'{"first s":>8}{"round s":>8}{"CPU s":>7}{"memory":>7}{"ratio":>7}')
    for k in args.factors:
        for n_threads in args.threads:
            rows = {('ours', n): measured('ours', k, n_threads, n, args) for n in args.processes}
            theirs = rows['implicit', 1] = measured('implicit', k, n_threads, 1, args)
            for (way, n_processes), o in rows.items():
                if o is None: continue
                ratio = o['round']/theirs['round'] if theirs else float('nan')
                print(f'{k:7}{n_threads:8}{n_processes:10}  {way:10}{o["first"]:8.2f}{o["round"]:8.3f}{o["cpu"]:7.3f}'
                      f'{o["memory"]:7.1f}{ratio:7.2f}', flush=True)

if __name__ == '__main__': main()
