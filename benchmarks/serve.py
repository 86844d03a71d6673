"""How the costs of training, a night and serving grow with the table, from Parquet files that are read as a stream.

Usage: python benchmarks/serve.py [--millions 1 4 20] [--factors 20] [--rounds 3] [--out FILE.csv]   (five minutes; one
thread; each step is a process of its own) Planted ratings of 8,000 users and 3,000 items a million, 8 true factors.
`fit_als` reads them by `from_stream`: seconds of CPU of a round from the second on, and the peak of the process. A
night is `collab-pretrained update` with 20,000 ratings, imports and all. Then the folder is loaded, a known user's list
is asked for 200 times, and the lists of up to 20,000 users, each without what the user has seen. Seconds are of CPU,
which change less with other work on the machine than those of the wall. Targets: a peak under 3 GiB at 20M; a night in
3 s and 1 GiB, a list in 2 ms and 5,000 lists a second at 60,000 items; loading in 1 s."""

import argparse
import json
import os
import subprocess
import sys
import time

os.environ['OMP_NUM_THREADS'] = '1'
from pathlib import Path
from tempfile import TemporaryDirectory

def planted(n, seed, n_users, n_items):
    "A table of `n` ratings, the pairs of a user and an item being distinct."
    import numpy as np
    import pandas as pd
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    u, v = (truth.normal(0, .5, (o, 8)).astype(np.float32) for o in (n_users, n_items))
    user, item = rng.integers(0, n_users, n), (n_items*rng.random(n)**2).astype(np.int64)
    rating = np.clip(np.round(3.5 + (u[user]*v[item]).sum(1) + rng.normal(0, .8, n)), 1, 5).astype(np.float32)
    return pd.DataFrame({'user': user, 'item': item, 'rating': rating}).drop_duplicates(['user', 'item'])

def make(folder, n, n_users, n_items):
    "A folder of Parquet files, a part of the users in each; and the ratings of a night."
    n_parts = -(-n//2**20)
    (folder/'ratings').mkdir()
    for k in range(n_parts):
        part = planted(n//n_parts, k, n_users//n_parts, n_items)
        part.assign(user=part['user']*n_parts + k).to_parquet(folder/f'ratings/{k:03}.parquet', index=False)
    planted(20_000, n_parts, n_users, n_items).to_csv(folder/'night.csv', index=False)

def peak(): return next(int(o.split()[1])//1024 for o in open('/proc/self/status') if o.startswith('VmHWM'))

def train(folder, args):
    "The stream, the rounds and the folder."
    from fastai.callback.core import Callback

    from collab_pretrained.all import CollabDataLoaders, collab_learner
    class Clock(Callback):
        cpu = []
        def after_epoch(self): self.cpu.append(time.process_time())
    start = time.process_time()
    dls = CollabDataLoaders.from_stream(folder/'ratings', valid_pct=0, seed=0, device='cpu', scratch=folder)
    read, learn = time.process_time() - start, collab_learner(dls, n_factors=args.factors)
    with learn.no_bar(), learn.no_logging(): learn.fit_als(args.rounds, cbs=Clock())
    size = {'ratings': len(dls.train_ds), **{f'{k}s': len(v.ids) for k, v in learn.vocab.items()}}
    res = {**size, 'read_s': read, 'round_s': (Clock.cpu[-1] - Clock.cpu[0])/(args.rounds - 1), 'fit_mib': peak()}
    saved = learn.save_pretrained(folder.resolve()/'model')
    return {**res, 'folder_mb': sum(o.stat().st_size for o in saved.iterdir())/1e6}

def serve(folder, args):
    "Loading, one list, and many."
    import numpy as np

    from collab_pretrained.learner.core import CollabLearner
    start = time.process_time()
    learn = CollabLearner.from_pretrained(folder/'model')
    res, users = {'load_s': time.process_time() - start}, learn.vocab['user'].ids[:20_000]
    with learn.no_bar():
        learn.recommend(users[:100])
        at = [time.process_time() for user in [*users[:200], 0] if len(learn.recommend([user]))]
        start = time.process_time()
        learn.recommend(users)
    return {**res, 'list_ms': np.median(np.diff(at))*1e3, 'lists_per_s': len(users)/(time.process_time() - start)}

def night(folder):
    "The command: seconds of CPU and MiB."
    call = [sys.executable, '-W', 'ignore', '-m', 'collab_pretrained', 'update', 'model', 'night.csv', '--out', 'new']
    with open(os.devnull, 'w') as none, subprocess.Popen(call, cwd=folder, stdout=none, stderr=none) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode: raise SystemExit(f'{" ".join(call)}: status {process.returncode}')
    return {'night_s': usage.ru_utime + usage.ru_stime, 'night_mib': usage.ru_maxrss//1024}

def measured(n, args):
    "All figures of one size."
    def step(name):
        call = [sys.executable, '-W', 'ignore', __file__, '--step', name, '--folder', str(folder),
                f'--factors={args.factors}', f'--rounds={args.rounds}']
        return json.loads(subprocess.run(call, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    with TemporaryDirectory() as folder:
        make(Path(folder), n, n//125, 3*n//1000)
        return {**step('train'), **night(folder), **step('serve'), 'factors': args.factors}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--millions', type=float, nargs='+', default=[1, 4, 20])
    p.add_argument('--factors', type=int, default=20)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--out', help='file to write the table to')
    p.add_argument('--step', choices=['train', 'serve'], help=argparse.SUPPRESS)
    p.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.step: return print(json.dumps(globals()[args.step](args.folder, args)))
    import pandas as pd
    rows = []
    for o in args.millions:
        rows.append(measured(int(o*1e6), args))
        print(pd.DataFrame(rows[-1:]).T.to_string(header=False, float_format='{:.3g}'.format), flush=True)
        if args.out: pd.DataFrame(rows).round(4).to_csv(args.out, index=False)

if __name__ == '__main__': main()
