"""What `match_embeds` costs, against an `index_select` of the same bytes and against a loop over the rows in Python.

Usage: python benchmarks/match.py [--n 1000000] [--dim 50] [--repeat 15] [--loop-n 50000] (about two minutes at a
million, and 2.5 GB of memory) `--n` users and as many items, `--dim` factors, biases too, float32; the new vocabulary
is the old one in another order with a tenth of its ids replaced. Each figure is the median of `--repeat` runs, all
kinds in turn in one process on one thread; an `index_select` writes into new memory, as matching must. The loop is
what one writes first: a dictionary of the old rows, and a look-up and an assignment for each new row; it is run on
`--loop-n` rows and scaled. Ids come as lists of Python's own values, as lists of numpy's (as fastai makes them), and
as a `Vocab`. Targets: at most 4 times the `index_select` for integer ids, 6 times for text."""

import argparse
import os
import pickle

os.environ.setdefault('OMP_NUM_THREADS', '1')
import time
from statistics import median

import numpy as np
import torch

from collab_pretrained.core import NA
from collab_pretrained.ids.vocab import Vocab
from collab_pretrained.weights.match import match_embeds

def two_vocabs(n, text, seed):
    """The names of `n` rows, old and new, each as read from a file: '#na#', then ids in a random order, nine in ten of
    them on both sides."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(10_000_000, 10_000_000 + n + n//10))
    names = [f'user-{o}' for o in ids] if text else ids.tolist()
    old, new = [NA, *names[:n-1]], [NA, *(names[k] for k in rng.permutation(np.arange(n//10, n//10 + n-1)))]
    return [pickle.loads(pickle.dumps(o)) for o in (old, new)]

def tables(n, dim):
    return {
        f'{side}_{what}.weight': torch.randn(n, width)
        for side in 'ui'
        for what, width in (('weight', dim), ('bias', 1))
    }


def loop(wgts, old, new):
    "The first thing that one writes: row by row, weights and biases, the mean where an id is unseen."
    res = {}
    for key, table in wgts.items():
        names, vocab = old[key[0] == 'i'], new[key[0] == 'i']
        old_o2i, mean = {o: row for row, o in enumerate(names)}, table[1:].mean(0)
        res[key] = table.new_zeros(len(vocab), table.shape[1])
        for row, name in enumerate(vocab):
            r = old_o2i.get(name, -1)
            res[key][row] = table[r] if r >= 0 else mean
    return res

def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def measure(n, dim, repeat, text):
    "Median seconds of each kind."
    sides = [two_vocabs(n, text, seed) for seed in (0, 1)]
    old, new = [[o[k] for o in sides] for k in (0, 1)]
    wgts = tables(n, dim)
    as_vocab = [[Vocab(o) for o in names] for names in (old, new)]
    of_numpy = [[[NA, *map(np.str_ if text else np.int64, o[1:])] for o in names] for names in (old, new)]
    rows = [
        torch.from_numpy(np.maximum(a.rows(np.array(b[1:], dtype=a.ids.dtype)), 0))
        for a, b in zip(as_vocab[0], new, strict=True)
    ]
    kinds = {
        'index_select': lambda: [table.index_select(0, rows[key[0] == 'i']) for key, table in wgts.items()],
        'ids as lists': lambda: match_embeds(wgts, old, dict(zip('ui', new, strict=True))),
        'ids of numpy': lambda: match_embeds(wgts, of_numpy[0], dict(zip('ui', of_numpy[1], strict=True))),
        'ids as Vocab': lambda: match_embeds(
            wgts, [Vocab.of(o) for o in as_vocab[0]], dict(zip('ui', as_vocab[1], strict=True))
        ),
    }
    runs = [{k: seconds(f) for k, f in kinds.items()} for _ in range(repeat)]
    return {k: median(o[k] for o in runs) for k in kinds}

def measure_loop(n, dim, text):
    sides = [two_vocabs(n, text, seed) for seed in (0, 1)]
    return seconds(lambda: loop(tables(n, dim), *[[o[k] for o in sides] for k in (0, 1)]))

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--n', type=int, default=1_000_000, help='users, and items, 20 or more')
    p.add_argument('--dim', type=int, default=50, help='factors')
    p.add_argument('--repeat', type=int, default=15, help='runs of each kind')
    p.add_argument('--loop-n', type=int, default=50_000, help='rows that the loop is run on')
    a = p.parse_args()
    torch.set_num_threads(1)
    print(f'{a.n:,} users and {a.n:,} items, {a.dim} factors and biases, float32, one thread; medians of {a.repeat}')
    print(f'{"ids":9}{"kind":16}{"seconds":>9}{"times":>8}  target')
    for text, target in ((False, 4), (True, 6)):
        s = measure(a.n, a.dim, a.repeat, text)
        loop_n = min(a.n, a.loop_n)
        s['loop (scaled)'] = measure_loop(loop_n, a.dim, text)*a.n/loop_n
        for k, v in s.items():
            goal = f'at most {target}' if k.startswith('ids') else ''
            print(f'{"text" if text else "integers":9}{k:16}{v:9.3f}{v/s["index_select"]:8.2f}  {goal}', flush=True)

if __name__ == '__main__': main()
