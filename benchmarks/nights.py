"""Does a model that takes in each night's ratings alone stay as good as one that is trained anew each night?

Usage: python benchmarks/nights.py [--data ml-100k ...] [--nights 20] [--seeds 3] [--ranking [--softmax]]
[--half-life] [--out FILE.csv]   (ten minutes; one thread)

Half of the ratings, in order of time, train the first model; the rest comes in equal nights, each of which is predicted
before it is taken in. MovieLens 100K, latest-small and MovieTweetings (the last two from ../shared/data, where it is
there), and planted ratings that depend on no taste, which only user and item biases explain. Ways:
  kept         the first model, `fit_als` with 20 factors and 10 rounds, is left alone
  biases       user and item biases, shrunk as their spread asks, each night from all ratings
  SGD          trained anew each night with the first settings of the table in nbs/53_learner.factory.ipynb
  fit_als      solved anew each night, as the first model
  update       the first model, read from its folder, takes in each night's ratings without the old ones
RMSE, of answers clipped to the range of the ratings that trained, over all nights and over the first and the last third
of them; CPU seconds of all nights' training, tables read and vocabularies made; means over the seeds (SGD: one seed
unless --sgd-seeds says more). `share` is the seconds over those of `fit_als`. `gap` is the RMSE less that of `fit_als`,
over all nights and the last third, each with its standard error over users, whose ratings stand and fall together.

--ranking: recall@10 and NDCG@10 of each night's liked items (4 of 5 stars and more, 8 of 10 for MovieTweetings) among
all items that the user had not rated before, for users who had liked one before; 50 factors, `loss='ials'`: kept,
trained anew each night, and `update`d from its folder (as `update` finds the pairs there). `--softmax`: a softmax
trained anew each night, too, which takes minutes.

--half-life: ratings with their times, and three more ways (two for ratings):
  fit_als, half-life   (ials, half-life) with `half_life='auto'`, solved anew each night
  update, half-life    the first model of these, read from its folder, takes in each night's ratings
  recent               for rankings: items by their recent popularity alone, with the half-life that ranks the newest
                       fifth of the ratings so far best
`half_life` is what the first model chose, in days.
--forget-after DAYS: `update`, which drops who had no rating for so long.
results/nights.csv, results/nights_half_life.csv (`--half-life`) and results/nights_ranking.csv (`--ranking
--half-life`) have the tables of one seed."""

import argparse
import os

for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.data.external import URLs, untar_data  # noqa: E402

from collab_pretrained.all import CollabDataLoaders, CollabLearner, Softmax, collab_learner  # noqa: E402
from collab_pretrained.data.age import ages_from, days_of  # noqa: E402
from collab_pretrained.models.ials import IALS, popularity_half_life, recent_counts  # noqa: E402
from collab_pretrained.serve.evaluate import rank_scores  # noqa: E402

LIKED = {'ml-100k': 4, 'ml-latest-small': 4, 'movietweetings': 8}
RANGES = {'movietweetings': (-.5, 10.5)}
NAMES, K = [*LIKED, 'planted'], 10

def planted(n=100_000, n_users=1000, n_items=1000):
    "Ratings of a mean, biases and noise: all users have one taste."
    rng = np.random.default_rng(0)
    popularity = rng.random(n_items)**2 + .02
    items = rng.choice(n_items, n, p=popularity/popularity.sum())
    df = pd.DataFrame({'user': rng.integers(0, n_users, n), 'item': items})
    biases = [rng.normal(0, .4, o)[df[c]] for c, o in (('user', n_users), ('item', n_items))]
    return df.assign(rating=3.5 + sum(biases) + rng.normal(0, .9, n)).drop_duplicates(['user', 'item'])

def read(name):
    "Ratings in order of time: user, item, rating, time; None where they are not there."
    columns = ['user', 'item', 'rating', 'time']
    if name == 'planted': return planted()
    if name == 'ml-100k': df = pd.read_csv(untar_data(URLs.ML_100k)/'u.data', sep='\t', names=columns)
    else:
        folder = Path(__file__).resolve().parents[2]/'shared/data'/name
        if not folder.is_dir(): return None
        if name == 'movietweetings': df = pd.read_csv(folder/'ratings.dat', sep='::', engine='python', names=columns)
        else: df = pd.read_csv(folder/'ratings.csv').set_axis(columns, axis=1)
    df['time'] = pd.to_numeric(df.time, errors='coerce')  # one damaged line makes text of the whole column
    return df.dropna(subset='time').sort_values('time', kind='stable')[columns].reset_index(drop=True)

def quiet(learn, method, *args):
    with learn.no_bar(), learn.no_logging(): getattr(learn, method)(*args)
    return learn

def loaders(df, seed, bs=1024, **kwargs):
    return CollabDataLoaders.from_df(df, valid_pct=0., seed=seed, bs=bs, **kwargs)
def solved(df, seed, **kwargs): return quiet(collab_learner(loaders(df, seed), **kwargs), 'fit_als', 10)
def aged(df, seed, **kwargs):
    return quiet(collab_learner(loaders(df, seed, time_name='time'), **kwargs), 'fit_als', 10, None, 'auto')

def descended(df, seed, y_range):
    torch.manual_seed(seed)
    learn = collab_learner(loaders(df, seed), n_factors=50, y_range=y_range, wd=1.2, wd_bias=False)
    return quiet(learn, 'fit_one_cycle', 5, 2e-2)

def from_folder(learn):
    "As another process would read it."
    with tempfile.TemporaryDirectory() as tmp:
        return CollabLearner.from_pretrained(learn.save_pretrained(Path(tmp).resolve()/'first'))

class Biases:
    "Mean, user and item biases, solved in turn; their spreads and the noise are estimated."
    def __init__(self, df, n_rounds=30):
        self.codes = [pd.Index(df[c].unique()) for c in ('user', 'item')]
        x, y = self.rows(df), df.rating.to_numpy()
        self.mean, noise, spread = y.mean(), y.std(), [.5*y.std()]*2
        self.biases = [np.zeros(len(o) + 1) for o in self.codes]  # the last is that of ids without ratings
        for _ in range(n_rounds):
            for k, b in enumerate(self.biases):
                rest = y - self.mean - self.biases[1-k][x[1-k]]
                variance = 1/(np.bincount(x[k], minlength=len(b))/noise**2 + 1/spread[k]**2)
                b[:] = np.bincount(x[k], rest, len(b))*variance/noise**2
                spread[k] = np.sqrt((b**2 + variance)[:-1].mean())
            noise = np.sqrt(((y - self.scores(x))**2).mean())

    def rows(self, df): return [o.get_indexer(df[c]) for o, c in zip(self.codes, ('user', 'item'), strict=True)]
    def scores(self, x): return self.mean + sum(b[rows] for b, rows in zip(self.biases, x, strict=True))

def by_recency(df, seed, liked):
    "A learner that ranks by items' recent popularity alone."
    learn = collab_learner(loaders(df, seed, time_name='time'), n_factors=1)
    ds, sizes = learn.dls.train_ds, [len(o) for o in learn.vocab.values()]
    of = ds.tensors[1][:,0] >= liked
    x, days = ds.tensors[0][of], days_of(ds.times[of])
    half_life = popularity_half_life(x, days, *sizes)
    with torch.no_grad():
        for o in learn.model.parameters(): o.zero_()
        learn.model.i_bias.weight[:,0] = recent_counts(x[:,1], days, sizes[1], half_life)
    learn.ages = ages_from(x.numpy(), days, sizes, half_life)
    return learn

def rows_of(learn, df): return np.stack([v.rows(df[c]) for c, v in learn.vocab.items()], 1).clip(0)

@torch.no_grad()
def answers(model, df):
    "Predictions; ids without a row have that of '#na#'."
    if isinstance(model, Biases): return model.scores(model.rows(df))
    return model.model.eval()(torch.from_numpy(rows_of(model, df))).numpy().ravel()

@torch.no_grad()
def ranks(learn, old, new, liked):
    "Recall and NDCG of users who liked something before, and do again: two arrays."
    new = new[(new.rating >= liked) & new.user.isin(old.user[old.rating >= liked])]
    users, m = new.user.unique(), learn.model
    place, vocab = pd.Index(users), learn.side('item').vocab
    scores = (m.u_weight.weight[rows_of(learn, pd.DataFrame({'user': users, 'item': new['item'].iloc[0]}))[:,0]]
              @ m.i_weight.weight.T + m.i_bias.weight.T).numpy()
    seen = old[old.user.isin(users)]
    scores[:,0] = scores[place.get_indexer(seen.user), vocab.rows(seen['item']).clip(0)] = -np.inf
    hit, rows, of = np.zeros(scores.shape, dtype=bool), vocab.rows(new['item']), place.get_indexer(new.user)
    hit[of[rows >= 0], rows[rows >= 0]] = True
    top = np.argpartition(-scores, K, 1)[:,:K]
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), 1, kind='stable'), 1)
    res = rank_scores(np.take_along_axis(hit, top, 1), np.bincount(of, minlength=len(users)))
    return np.stack([res['recall'], res['ndcg']])

def rating_ways(df, seed, args, y_range):
    "Name -> the model of the first half, and the step from it to the next night's model."
    first = solved(df[:args.half], seed, n_factors=20)
    def update(learn, a, b):
        with learn.no_bar(): learn.update(df[a:b])
        return learn
    ways = {'kept': (first, None), 'fit_als': (first, lambda m, a, b: solved(df[:b], seed, n_factors=20)),
            'update': (from_folder(first), update)}
    if args.half_life:
        first = aged(df[:args.half], seed, n_factors=20)
        ways |= {'fit_als, half-life': (first, lambda m, a, b: aged(df[:b], seed, n_factors=20)),
                 'update, half-life': (from_folder(first), update)}
    if args.forget_after:
        dls = loaders(df[:args.half], seed, time_name='time')
        dated = quiet(collab_learner(dls, n_factors=20), 'fit_als', 10)
        def forget(learn, a, b):
            with learn.no_bar(): learn.update(df[a:b], forget_after=args.forget_after)
            return learn
        ways['update, forgetting'] = from_folder(dated), forget
    if not seed: ways['biases'] = Biases(df[:args.half]), lambda m, a, b: Biases(df[:b])
    if seed < args.sgd_seeds: ways['SGD'] = (
        descended(df[:args.half], seed, y_range), lambda m, a, b: descended(df[:b], seed, y_range))
    return ways

def ranking_ways(df, seed, args, liked):
    first = solved(df[:args.half], seed, n_factors=50, loss=IALS(liked))
    def update(learn, a, b):
        with learn.no_bar(): learn.update(df[a:b])
        return learn
    def softmax(b):
        torch.manual_seed(seed)
        return quiet(collab_learner(loaders(df[:b], seed, 4500), loss=Softmax(liked)), 'fit_one_cycle', 7)
    def again(m, a, b): return solved(df[:b], seed, n_factors=50, loss=IALS(liked))
    ways = {'kept': (first, None), 'ials': (first, again), 'update': (from_folder(first), update)}
    if args.half_life:
        kwargs = dict(n_factors=50, loss=IALS(liked))
        first = aged(df[:args.half], seed, **kwargs)
        ways |= {'ials, half-life': (first, lambda m, a, b: aged(df[:b], seed, **kwargs)),
                 'update, half-life': (from_folder(first), update)}
        if not seed: ways['recent'] = (by_recency(df[:args.half], seed, liked),
                                       lambda m, a, b: by_recency(df[:b], seed, liked))
    if args.softmax and not seed: ways['softmax'] = softmax(args.half), lambda m, a, b: softmax(b)
    return ways

def chain(df, cuts, model, step, measure):
    "What `measure` says of each night, and the seconds of all steps."
    found, seconds = [], 0.
    for a, b in zip(cuts, cuts[1:], strict=False):
        found.append(measure(model, df[:a], df[a:b]))
        start = time.process_time()
        if step: model = step(model, a, b)
        seconds += time.process_time() - start
    return found, seconds

def squared(model, old, new):
    return (answers(model, new).clip(old.rating.min(), old.rating.max()) - new.rating.to_numpy())**2

def summary(found, ranking):
    "Figures over all nights, and over the first and the last third."
    third = len(found)//3
    parts = {'': found, ' first third': found[:third], ' middle': found[third:-third], ' last third': found[-third:]}
    if not ranking: return {f'RMSE{k}': np.concatenate(o).mean()**.5 for k, o in parts.items()}
    means = {k: np.concatenate(o, 1).mean(1) for k, o in parts.items()}
    return {f'{what}{k}': m[i] for k, m in means.items() for i, what in enumerate(('recall', 'NDCG'))}

def gaps(found, full, users):
    "By how much the RMSE is above that of `full`, and the standard error of that, errors of one user being one number."
    res, third = {}, len(found)//3
    for part, k in (('', 0), (' last third', -third)):
        of, a, b = (np.concatenate(o[k:]) for o in (users, found, full))
        slope = .5/a.mean()**.5/len(a)  # of the RMSE, by the sum of squared errors
        sums = pd.Series(a - b - (a - b).mean()).groupby(of).sum()
        res |= {f'gap{part}': a.mean()**.5 - b.mean()**.5, f'gap{part} se': slope*(sums**2).sum()**.5}
    return res

def measure(name, df, args):
    "A line for each way: means over the seeds."
    args.half, runs = len(df)//2, []
    cuts = np.linspace(args.half, len(df), args.nights + 1).astype(int)
    liked = LIKED.get(name)
    for seed in range(args.seeds):
        if args.ranking: ways = ranking_ways(df, seed, args, liked)
        else: ways = rating_ways(df, seed, args, RANGES.get(name, (0, 5.5)))
        def look(m, old, new): return ranks(m, old, new, liked) if args.ranking else squared(m, old, new)
        users, full = [df.user[a:b] for a, b in zip(cuts, cuts[1:], strict=False)], None
        for way, (first, step) in sorted(ways.items(), key=lambda o: o[0] != 'fit_als'):
            found, seconds = chain(df, cuts, first, step, look)
            full = full or found
            gap = {} if args.ranking else gaps(found, full, users)
            runs.append({'data': name, 'way': way, **summary(found, args.ranking), **gap, 'cpu_s': seconds,
                         'half_life': getattr(getattr(first, 'ages', None), 'half_life', None)})
    res = pd.DataFrame(runs).groupby(['data', 'way'], sort=False).mean().reset_index()
    full = res.cpu_s[res.way == ('ials' if args.ranking else 'fit_als')].item()
    return res.assign(share=res.cpu_s/full)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', nargs='+', default=NAMES, choices=NAMES, help='which ratings')
    p.add_argument('--nights', type=int, default=20)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--sgd-seeds', type=int, default=1, help='of the SGD retrain, the slowest')
    p.add_argument('--ranking', action='store_true')
    p.add_argument('--softmax', action='store_true')
    p.add_argument('--half-life', action='store_true')
    p.add_argument('--forget-after', type=float, help='days: `update` drops ids without a rating for so long')
    p.add_argument('--out', type=Path, help='CSV file for the table')
    args, tables = p.parse_args(), []
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    for name in args.data:
        df = None if args.ranking and name not in LIKED else read(name)
        if df is None: continue
        tables.append(measure(name, df, args))
        print(tables[-1].to_string(index=False, float_format='{:.4f}'.format), '\n', flush=True)
        if args.out: pd.concat(tables).round(4).to_csv(args.out, index=False)

if __name__ == '__main__': main()
