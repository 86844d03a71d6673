"""`fit_als` on a GPU: how far its rows are from those of a CPU thread, how long a round takes, and lists and fold-ins.

Usage: python benchmarks/gpu.py [--device cuda] [--ratings 20000000] [--check 1000000] [--factors 50]   (ten minutes at
most; `--device cpu` tries the script where there is no GPU) Planted ratings, a user for 125 and an item for 333. Three
rounds over `--check` ratings are made on both devices from one start; `apart` is the largest difference of a mean or a
variance, over the spread of its column. A round over `--ratings` is the median of three after the first, and that of
the CPU thread is scaled up by the number of ratings. Targets: 1e-4 apart; 2 s a round of 20M ratings with 50 factors,
50 times as fast as the thread. Exit status 1 where the rows are further apart."""

import argparse
import os
import sys
import time

os.environ['OMP_NUM_THREADS'] = '1'
from statistics import median

import numpy as np
import torch
from als import planted

from collab_pretrained.models.als import fit_rounds, solve_new_rows
from collab_pretrained.models.posterior import start

def ratings(n):
    "Pairs, ratings, and how many users and items."
    size = n//125, 3*n//1000
    users, items, y = planted(n, *size)
    return torch.from_numpy(np.stack([users, items], 1)), torch.from_numpy(y), size

def clock(device):
    if device == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()

def rounds(x, y, size, k, device, n_rounds):
    "The last posterior, and the seconds of each round; the first includes sorting."
    first, at = start(y, *size, k), [clock(device)]
    first = type(first)(to(first.users, device), to(first.items, device), first.noise)
    made = fit_rounds(first, x.to(device), y.to(device), n_rounds=n_rounds)
    for _ in range(n_rounds):
        last = next(made)
        at.append(clock(device))
    return last, np.diff(at)

def to(side, device): return type(side)(**{k: v.to(device) for k, v in vars(side).items()})

def apart(a, b):
    "The largest difference of the rows of two posteriors."
    pairs = [(getattr(p, o), getattr(q, o).to(getattr(p, o))) for p, q in ((a.users, b.users), (a.items, b.items))
             for o in ('mean', 'variance')]
    return max(((p - q).abs()/p.std(0).clamp(min=1e-6)).max().item() for p, q in pairs)

def seconds(f, device):
    f()
    began = clock(device)
    f()
    return clock(device) - began

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cuda')
    p.add_argument('--ratings', type=int, default=20_000_000)
    p.add_argument('--check', type=int, default=1_000_000)
    p.add_argument('--factors', type=int, default=50)
    args = p.parse_args()
    torch.set_num_threads(1)
    x, y, size = ratings(args.check)
    (ours, _), (theirs, cpu) = (rounds(x, y, size, args.factors, o, 3) for o in (args.device, 'cpu'))
    print(f'{args.check:,} ratings: {(far := apart(theirs, ours)):.1e} apart', flush=True)
    x, y, size = ratings(args.ratings)
    posterior, times = rounds(x, y, size, args.factors, args.device, 4)
    thread, s = median(cpu[1:])*args.ratings/args.check, median(times[1:])
    print(f'{args.ratings:,} ratings, {args.factors} factors: first round {times[0]:.2f} s, a round {s:.2f} s, '
          f'{thread/s:.0f} times a CPU thread ({thread:.1f} s)', flush=True)
    own = x[:,0] < 10_000
    x, y = x[own].to(args.device), y[own].to(args.device)
    s = seconds(lambda: solve_new_rows(posterior, 'user', x, y), args.device)
    print(f'fold-in: {10_000/s:,.0f} users a second')
    u, v = posterior.users.mean[:10_000,:-1], posterior.items.mean
    s = seconds(lambda: [(o @ v[:,:-1].T + v[:,-1]).topk(10) for o in u.split(1024)], args.device)
    print(f'lists of ten: {len(u)/s:,.0f} a second')
    return int(far > 1e-4)

if __name__ == '__main__': sys.exit(main())
