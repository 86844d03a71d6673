"""What a table that doesn't fit in memory costs: encoding it, an epoch of its loader, and the memory that both take.

Usage: python benchmarks/stream.py [--rows 20000000] [--repeat 3]   (a minute or two; half a GB of disk; memory on Linux
only) Each batch size runs in a process of its own, with one thread of torch. Rows per second are the epochs' median;
those per second of the CPU change less with other work on the machine. Memory is the peak of the whole process (VmHWM),
Python and torch included; what they take before any rating is read is given beside it. Targets: 20M rows at no less
than 5M rows a second, with a peak below 1 GiB; every row once an epoch, which is checked."""

import argparse
import os
import subprocess
import sys
import time

os.environ['OMP_NUM_THREADS'] = '1'
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

def make(n, file):
    "Write `n` ratings by n/50 users of n/500 items to Parquet, a million at a time."
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    rng, writer = np.random.default_rng(0), None
    for k in range(0, n, 10**6):
        m = min(10**6, n - k)
        part = pa.table(
            {
                'user': 7 * rng.integers(0, n // 50, m),
                'item': (n // 500 * rng.random(m) ** 2).astype(np.int64),
                'rating': (rng.integers(1, 11, m) / 2).astype(np.float32),
            }
        )
        writer = writer or pq.ParquetWriter(file, part.schema)
        writer.write_table(part)
    writer.close()

def memory(key):
    return next(
        int(o.split()[1]) / 1024 for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(key)
    )


def measure(file, bs, repeat):
    "In a process of its own: encode, run `repeat` epochs, check one, print."
    import torch

    from collab_pretrained.all import CollabDataLoaders
    torch.set_num_threads(1)
    before, start = memory('VmRSS'), time.perf_counter()
    dls = CollabDataLoaders.from_stream(file, valid_pct=0, seed=0, bs=bs, device='cpu')
    encode_s, n = time.perf_counter() - start, len(dls.train_ds)
    epochs = []
    for _ in range(repeat):
        start = time.perf_counter(), time.process_time()
        for _ in dls.train: pass
        epochs.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    peak = memory('VmHWM')
    sums = [
        sum(
            torch.stack(
                [x[:, 0].sum(), x[:, 1].sum(), (x[:, 0] * x[:, 1]).sum(), len(x) * torch.ones((), dtype=torch.int64)]
            )
            for x, y in part
        )
        for part in (dls.train, dls.train_ds.blocks())
    ]
    assert torch.equal(*sums), 'an epoch is not the table'
    print(
        f'bs={bs:<6} encoded in {encode_s:5.1f} s ({n / encode_s:,.0f} rows/s); '
        f'an epoch: {n / median(o for o, _ in epochs):,.0f} rows/s, '
        f'{n / median(o for _, o in epochs):,.0f} rows/s of the CPU; peak {peak:.0f} MiB, {before:.0f} of them before',
        flush=True,
    )


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', type=int, default=20_000_000)
    p.add_argument('--repeat', type=int, default=3)
    p.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure:
        measure(args.measure[0], int(args.measure[1]), args.repeat)
    else:
        with TemporaryDirectory() as d:
            subprocess.run(
                [sys.executable, '-c', f'from stream import make; make({args.rows}, {d + "/ratings.parquet"!r})'],
                cwd=Path(__file__).parent,
                check=True,
            )
            print(f'{args.rows:,} ratings, {Path(d, "ratings.parquet").stat().st_size / 2**20:.0f} MiB of Parquet')
            for bs in (64, 512, 4096):
                subprocess.run(
                    [
                        sys.executable,
                        __file__,
                        '--measure',
                        d + '/ratings.parquet',
                        str(bs),
                        '--repeat',
                        str(args.repeat),
                    ],
                    check=True,
                )
