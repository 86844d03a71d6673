"""When the catalogue has changed: what a warm start, fold-in, adapt, freezing, anchoring, an update and a full retrain,
solved or descended, give, and what they cost.

Usage: python benchmarks/warmstart.py [--quick] [--data ml-100k ml-latest-small] [--setups time ...] [--seeds 3]
[--check 2000] [--out FILE.csv]

MovieLens 100K, and ../shared/data/ml-latest-small where it is there; one thread. Four
ways in which a corpus changes:
  time   sorted by time, the first 80% old; new are the last 20% and the newest tenth of the old;
         validation is each user's last fifth since then
  point  the same corpora; validation is the last fifth of the new one, by time for all
  users  half of the users unseen; new are their ratings and the newest fifth of everyone else's;
         validation is each user's last fifth of those
  items  likewise with items
The old model: 50 factors, sigmoid to (0, 5.5), 8 epochs of one cycle with AdamW, bs=512, lr 5e-3, decoupled weight
decay 0.4; all others likewise. `fit_als`: 20 factors, 10 rounds over all ratings, old and new; `update`: such a
model of the old ratings, read from its folder, takes in the new ones without the old. The number of epochs (of
scratch; of warm, frozen and anchored) is chosen on a part that is not reported: that which the same rule holds out
of the training part. RMSE (of answers clipped to the ratings' range) over all ratings that validate, over those
whose user and item the old model knew, and over the others. `change` is what happened to old users: the RMSE on
2,000 of their old ratings, which trained no model, less the old model's (`--check 0` leaves the old model these
ratings, and the column empty). Medians over the seeds; CPU seconds of making and training a learner. Some minutes on
a quiet machine; the rows of a set-up are written as soon as it is done."""

import argparse
import os

os.environ['OMP_NUM_THREADS'] = '1'
import tempfile
import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.data.external import URLs, untar_data
from fastai.optimizer import OptimWrapper

from collab_pretrained.all import (
    AnchorCallback,
    CollabDataLoaders,
    CollabLearner,
    CollabWarning,
    Pretrained,
    collab_learner,
    nearest,
)
from collab_pretrained.learner.factory import read_pretrained

adamw = partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True))
fills = 'mean', 'popular', 'normal', 'random', 'nearest'

def read(name):
    "Ratings sorted by time, and the genres of each film as zeros and ones."
    if name == 'ml-100k':
        folder = untar_data(URLs.ML_100k)
        df = pd.read_csv(folder/'u.data', sep='\t', names=['user', 'item', 'rating', 'ts'])
        genres = pd.read_csv(folder/'u.item', sep='|', header=None, encoding='latin-1', index_col=0).iloc[:,-19:]
    else:
        folder = Path(__file__).resolve().parents[2]/'shared/data'/name
        if not folder.is_dir(): return None
        df = pd.read_csv(folder/'ratings.csv').set_axis(['user', 'item', 'rating', 'ts'], axis=1)
        genres = pd.read_csv(folder/'movies.csv', index_col='movieId').genres.str.get_dummies()
    df['ts'] = pd.to_numeric(df.ts, errors='coerce')  # one damaged line makes text of the whole column
    return df.dropna(subset='ts').sort_values('ts', kind='stable').reset_index(drop=True), genres

def last_fifth(df, col, at_least=5):
    "Which ratings are the last fifth of their user's, or item's; none of those with fewer than `at_least`."
    groups = df.groupby(col)
    n, rank = groups[col].transform('size'), groups.cumcount()
    return (n >= at_least) & (rank >= n - np.maximum(n//5, 1))

def by_time(df, seed, point):
    "Old ratings, new ratings, and a function that says which of the new are held out."
    cut = int(.8*len(df))
    def hold(new):
        if point: return new.index >= new.index[int(.8*len(new))]
        late = new[new.index >= cut]
        return new.index.isin(late.index[last_fifth(late, 'user')])
    return df[:cut], df[int(.9*cut):], hold

def half_unseen(df, seed, col):
    ids = df[col].unique()
    unseen = df[col].isin(np.random.default_rng(seed).choice(ids, len(ids)//2, replace=False))
    new = unseen | last_fifth(df, col)
    return df[~new], df[new], partial(last_fifth, col=col)

setups = {
    'time': partial(by_time, point=False),
    'users': partial(half_unseen, col='user'),
    'items': partial(half_unseen, col='item'),
    'point': partial(by_time, point=True),
}


def loaders(train, valid=None, seed=0):
    "Loaders of `train`; ids of `valid` get rows as well."
    df = train if valid is None else pd.concat([train, valid])
    return CollabDataLoaders.from_df(
        df.drop(columns='ts'), seed=seed, bs=512, splits=(np.arange(len(train)), np.arange(len(train), len(df)))
    )


def fit(learn, epochs, lr=5e-3):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, wd=.4)
    return learn

def solved(ratings, seed=0):
    learn = collab_learner(loaders(ratings, seed=seed), n_factors=20)
    with learn.no_bar(), learn.no_logging(): return learn.fit_als(10)

def answers(learn, df, limits):
    "Clipped to `limits`; ids without a row have that of '#na#'."
    x = np.stack([v.rows(df[c]) for c, v in learn.vocab.items()], 1).clip(0)
    with torch.no_grad(): return learn.model.eval()(torch.from_numpy(x)).numpy().ravel().clip(*limits)

def rmse(preds, df, some=slice(None)): return ((preds - df.rating)[some]**2).mean()**.5

class Trial:
    "One old model and one new corpus; each way to a new model as a method."
    def __init__(self, old, train, valid, check, genres, seed):
        self.old_ratings, self.train, self.valid, self.check = old, train, valid, check
        self.genres, self.seed = genres, seed
        self.matched = valid.user.isin(old.user) & valid['item'].isin(old['item'])
        self.limits = old.rating.min(), old.rating.max()
        torch.manual_seed(seed)
        self.scratch_dls, self.dls, self.all_dls = (
            loaders(train, seed=seed),
            loaders(train, valid, seed),
            loaders(self.everything(), seed=seed),
        )
        self.old = fit(self.fresh(loaders(old, seed=seed)), 8)
        pre, counts = (
            read_pretrained(self.old),
            {f'{c}s': old[c].value_counts()[v.ids].tolist() for c, v in self.old.vocab.items()},
        )
        self.start = Pretrained(pre.wgts, pre.vocab, {**pre.meta, 'counts': counts}, pre.name)
        self.before = rmse(answers(self.old, check, self.limits), check)
        solved_old, self.tmp = solved(old, seed), tempfile.TemporaryDirectory()
        self.folder = solved_old.save_pretrained(Path(self.tmp.name).resolve()/'old')
        self.solved_before = rmse(answers(solved_old, check, self.limits), check)

    def everything(self): return pd.concat([self.old_ratings.drop(self.train.index, errors='ignore'), self.train])
    def fresh(self, dls, **kwargs): return collab_learner(dls, 50, y_range=(0, 5.5), opt_func=adamw, **kwargs)
    def warm(self, unseen='mean', **kwargs):
        if unseen == 'nearest': unseen = {'users': 'mean', 'items': nearest(self.genres)}
        return self.fresh(self.dls, pretrained=self.start, unseen=unseen, seed=self.seed, **kwargs)

    def scratch(self, epochs): return fit(self.fresh(self.scratch_dls), epochs)
    def filled(self, unseen, epochs): return fit(self.warm(unseen), epochs) if epochs else self.warm(unseen)
    def fold_in(self, side, epochs=0):
        learn = self.warm()
        learn.fold_in(self.train, side=side, ids='all', commit=True)
        return learn
    def adapt(self, epochs=0):
        learn = self.warm()
        with learn.no_bar(), learn.no_logging(): return learn.adapt(epochs=epochs)
    def frozen(self, epochs): return fit(self.warm().freeze_rows('matched'), epochs)
    def anchored(self, epochs): return fit(self.warm(cbs=AnchorCallback()), epochs)
    def retrain(self, epochs): return fit(self.fresh(self.all_dls), epochs)
    def fit_als(self): return solved(self.everything(), self.seed)
    def update(self):
        learn = CollabLearner.from_pretrained(self.folder)
        with learn.no_bar(): learn.update(self.train.drop(columns='ts'))
        return learn

    def run(self, way, before=0.):
        "RMSE of `way`, a function without arguments that returns a learner, and its seconds; `before`: of the old one."
        torch.manual_seed(self.seed)
        start = time.process_time()
        learn = way()
        seconds, preds = time.process_time() - start, answers(learn, self.valid, self.limits)
        parts = {'all': slice(None), 'matched': self.matched, 'new': ~self.matched}
        change = rmse(answers(learn, self.check, self.limits), self.check) - before
        return {**{k: rmse(preds, self.valid, some) for k, some in parts.items()}, 'change': change, 'cpu_s': seconds}

def ways(trial, epochs):
    "Name -> its number of epochs, and the function from that to the learner."
    n = epochs['warm']
    return {
        'scratch': (epochs['scratch'], trial.scratch),
        'warm, no epoch': (0, partial(trial.filled, 'mean')),
        **{f'warm, {o}': (n, partial(trial.filled, o)) for o in fills},
        'frozen': (n, trial.frozen),
        'anchored': (n, trial.anchored),
        'fold-in, users': (0, partial(trial.fold_in, 'user')),
        'fold-in, items': (0, partial(trial.fold_in, 'item')),
        'adapt': (0, trial.adapt),
        'adapt, 1 epoch': (1, trial.adapt),
        'full retrain': (8, trial.retrain),
        'fit_als': (10, lambda _: trial.fit_als()),
        'update': (0, lambda _: trial.update()),
    }


def split(corpora, seed, n_check, tuning=False):
    """A trial's ratings: old, train, valid, check. Where settings are chosen, the ratings that validate are left out of
    everything."""
    old, new, hold = corpora
    if tuning: new = new[~hold(new)]
    train, valid = new[~hold(new)], new[hold(new)]
    known = old[old.user.isin(new.user) & old['item'].isin(new['item']) & ~old.index.isin(new.index)]
    check = known.sample(min(n_check, len(known)//2), random_state=seed)
    return old.drop(check.index), train, valid, check

def choose(trial, quick):
    "The number of epochs of each way that trains."
    def best(way, among): return min(among[:1] if quick else among, key=lambda n: trial.run(partial(way, n))['all'])
    return {'scratch': best(trial.scratch, (5, 8, 12)), 'warm': best(partial(trial.filled, 'mean'), (2, 4, 8))}

def measure(name, df, genres, setup, seeds, n_check, quick):
    "A line for each way: medians over the seeds."
    make, runs = setups[setup], []
    epochs = choose(Trial(*split(make(df, 0), 0, n_check, tuning=True), genres, 0), quick)
    for seed in range(seeds):
        trial = Trial(*split(make(df, seed), seed, n_check), genres, seed)
        for k, (n, way) in ways(trial, epochs).items():
            before = trial.solved_before if k in ('fit_als', 'update') else trial.before
            runs.append({'way': k, 'epochs': n, **trial.run(partial(way, n), before)})
    res = pd.DataFrame(runs).groupby(['way', 'epochs'], sort=False).median().reset_index()
    return pd.concat([pd.DataFrame({'data': name, 'setup': setup}, index=res.index), res], axis=1)

def show(table):
    "The table of one set-up, and who wins."
    name, setup = table.data[0], table.setup[0]
    print(f'\n{name}, {setup}')
    print(table.drop(columns=['data', 'setup']).to_string(index=False, float_format='{:.4f}'.format))
    best, of = table.loc[table['all'].idxmin()], table.set_index('way')
    shares = (f'{k} {of.cpu_s[k]/of.cpu_s["full retrain"]:.2f}' for k in ('adapt', 'fit_als', 'update'))
    print(f'best: {best.way} ({best["all"]:.4f}); seconds over a full retrain\'s: {", ".join(shares)}', flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ['ml-100k', 'ml-latest-small']
    p.add_argument('--data', nargs='+', default=names, choices=names, help='which ratings')
    p.add_argument('--setups', nargs='+', default=list(setups), choices=list(setups), help='which ways of changing')
    p.add_argument('--seeds', type=int, default=3, help='runs of each')
    p.add_argument('--check', type=int, default=2000, help='old ratings that train no model')
    p.add_argument('--quick', action='store_true', help='one seed, and no settings chosen')
    p.add_argument('--out', type=Path, help='CSV file for the table')
    a = p.parse_args()
    if a.out: a.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter('ignore', CollabWarning)
    corpora, tables = {name: read(name) for name in a.data}, []
    for setup, (name, data) in product(a.setups, corpora.items()):
        if data is None: continue
        start = time.process_time()
        tables.append(measure(name, *data, setup, 1 if a.quick else a.seeds, a.check, a.quick))
        show(tables[-1])
        print(f'{time.process_time()-start:.0f} s', flush=True)
        if a.out: pd.concat(tables).round(4).to_csv(a.out, index=False)
    print('\n'.join(f'{name} is not there, and left out' for name, data in corpora.items() if data is None))

if __name__ == '__main__': main()
