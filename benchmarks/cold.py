"""New items and new users: what features of theirs are worth before the first rating and after a few, beside the same
model without features, `nearest`, LightFM and cmfrec; and whether intervals of predicted ratings hold.

Usage: python benchmarks/cold.py [--only items users ranking calibration] [--seeds 3] [--out FILE.csv] [--python
lightfm=/path/to/python cmfrec=/path/to/python]   (MovieLens 100K; some minutes, one thread; results/cold.csv has the
figures) A library runs in the Python that `--python` names for it, else in this one; what does not import there is
named as missing.

`items`: half of the items are unseen. The model (`fit_als`, 20 factors, 10 rounds) learns from the ratings of the
others; then unseen items get 0, 1, 5 or 20 of their ratings by `fold_in`, and a random fifth of their ratings is
predicted. Features are genres and the half-decade of the release; `+ 50 of noise` adds columns of random numbers,
`noise` has nothing else. `users` likewise, with age, sex and occupation. `mean fill` is the mean row of the items that
are known; `cmfrec` is `CMF` with `item_factors_cold`, its regularization chosen on another seed. `ranking`: the same
items; those rated 4 or more are liked; recall@10 and NDCG@10 of the unseen items that each user likes, among all
unseen ones. LightFM (WARP, 32 factors) knows items by their features alone, or by features and ids. The floor ranks
items by the popularity that their features tell. `calibration` says for what share of ratings the 80% interval holds
(prediction -+ 1.2816 `std`), in all and by fifths of its width: the model is trained on the first half by time, and 20
nights are predicted before they are taken in; the tables are those of nights.py. Means over the seeds. Constants of
the regression were chosen on the splits of other seeds (`--first-seed 100`), as were the settings of the other
libraries. The constant of a row's noise (`NOISE_COUNTS`) was tried on these nights of both MovieLens tables; that
nights stretch intervals was decided on the first halves of all tables."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
import numpy as np
import pandas as pd

COLUMNS = ['user', 'item', 'rating']
GIVEN = 0, 1, 5, 20

def read():
    "Ratings, and what items and users are."
    from fastai.data.external import URLs, untar_data
    folder = untar_data(URLs.ML_100k)
    ratings = pd.read_csv(folder/'u.data', sep='\t', names=[*COLUMNS, 'time'])
    films = pd.read_csv(folder/'u.item', sep='|', header=None, encoding='latin-1', index_col=0)
    genres = films.iloc[:,-19:].astype(bool).rename(columns=lambda o: f'genre{o}')
    year = films[1].str.extract(r'\((\d{4})\)')[0].astype(float)
    people = pd.read_csv(folder/'u.user', sep='|', names=['id', 'age', 'sex', 'job', 'zip'], index_col='id')
    people = people.drop(columns='zip').assign(decade=people.age//10).astype({
        o: 'category' for o in ('sex', 'job', 'decade')})
    return ratings, {'item': genres.assign(half_decade=pd.Categorical(year//5*5)), 'user': people}

def report(title, columns, runs):
    "Print the mean over the seeds of each way, and return it as rows."
    print(f'\n{title}: {", ".join(columns)}')
    means = {name: np.mean(res, 0) for name, res in runs.items()}
    for name, o in means.items(): print(f'{name:24}' + ''.join(f'{v:9.4f}' for v in o))
    return [{'table': title, 'way': name, 'figure': c, 'value': v} for name, o in means.items()
            for c, v in zip(columns, o, strict=False)]

def noise(frame): return pd.DataFrame(np.random.default_rng(0).normal(size=(len(frame), 50)), frame.index,
                                      [f'noise{k}' for k in range(50)])

def split(ratings, side, seed):
    "Unseen ids, ratings of the others, and of the unseen: the fifth to predict, and the rest with its rank by id."
    ids = np.sort(ratings[side].unique())
    unseen = np.sort(np.random.default_rng(seed).choice(ids, len(ids)//2, replace=False))
    new = ratings[side].isin(unseen)
    shuffled = ratings[new].sample(frac=1, random_state=seed)
    n = shuffled.groupby(side)[side].transform('size')
    held = shuffled.groupby(side).cumcount() < (n/5).round()
    rest = shuffled[~held]
    return unseen, ratings[~new], shuffled[held], rest.assign(rank=rest.groupby(side).cumcount())

def solved(train, seed, features=None, n_factors=20, **kwargs):
    from collab_pretrained.all import CollabDataLoaders, collab_learner
    clicks = kwargs.get('loss') == 'ials'
    dls = CollabDataLoaders.from_df(train[COLUMNS[:2] if clicks else COLUMNS], seed=seed, implicit=clicks,
                                    splits=(np.arange(len(train)), []))
    learn = collab_learner(dls, n_factors=n_factors, seed=seed, features=features, **kwargs)
    with learn.no_bar(), learn.no_logging(): return learn.fit_als(10)

def rmse(preds, test): return float(((np.clip(preds, 1, 5) - test.rating)**2).mean()**.5)

def answers(learn, test):
    import torch
    x = np.stack([v.rows(test[c]) for c, v in learn.vocab.items()], 1).clip(0)
    with torch.no_grad(): return learn.model.eval()(torch.from_numpy(x)).numpy().ravel()

def given(learn, side, unseen, frame, rest, test):
    "RMSE with 0, 1, 5 and 20 ratings of each unseen id."
    from collab_pretrained.all import CollabLearner
    learn.add_ids(side, unseen if frame is None else frame.loc[unseen])
    with tempfile.TemporaryDirectory() as tmp:
        folder, res = learn.save_pretrained(Path(tmp)/'model'), []
        for n in GIVEN:
            one = CollabLearner.from_pretrained(folder)
            if n: one.fold_in(rest[rest['rank'] < n][COLUMNS], side=side, ids='all', commit=True)
            res.append(rmse(answers(one, test), test))
    return res

def filled(train, test, seed, side, unseen, fill):
    "RMSE at 0 ratings of a warm start that fills rows."
    from collab_pretrained.all import CollabDataLoaders, collab_learner
    every = pd.concat([train, test])[COLUMNS]
    dls = CollabDataLoaders.from_df(every, seed=seed, splits=(np.arange(len(train)), np.arange(len(train), len(every))))
    warm = collab_learner(dls, n_factors=20, pretrained=solved(train, seed), unseen={f'{side}s': fill})
    return [rmse(answers(warm, test), test)]

def numbers(frame):
    "Standardised numbers of a table of features, for other libraries."
    from collab_pretrained.data.features import fit_encoding
    return pd.DataFrame(fit_encoding(frame).encode(frame), frame.index)

def cold(ratings, frame, side, seeds, pythons):
    "A line for each way."
    from collab_pretrained.all import nearest
    runs = {}
    for seed in seeds:
        unseen, train, test, rest = split(ratings, side, seed)
        ways = {'without features': None, 'features': frame, 'features + 50 of noise': frame.join(noise(frame)),
                'noise': noise(frame)}
        for name, table in ways.items():
            learn = solved(train, seed, table is not None and {side: table} or None)
            runs.setdefault(name, []).append(given(learn, side, unseen, table, rest, test))
        plain = numbers(frame)
        for name, fill in (('mean fill', 'mean'), ('nearest', nearest(plain))):
            runs.setdefault(name, []).append(filled(train, test, seed, side, unseen, fill))
        if side == 'item' and (preds := in_peer('cmfrec', pythons, seed, train, test, plain)) is not None:
            runs.setdefault('cmfrec', []).append([rmse(preds, test)])
    return report(f'new {side}s, RMSE', [f'{n} ratings' for n in GIVEN], runs)

def in_peer(name, pythons, seed, train, test, features):
    "What a library says, in its own Python: an array, or None where it is missing."
    with tempfile.TemporaryDirectory() as tmp:
        train[COLUMNS].to_csv(f'{tmp}/train.csv', index=False)
        test[COLUMNS].to_csv(f'{tmp}/test.csv', index=False)
        np.savez(f'{tmp}/features.npz', ids=features.index, values=features.to_numpy())
        command = [pythons.get(name, sys.executable), __file__, '--peer', name, tmp, str(seed)]
        done = subprocess.run(command, capture_output=True, text=True)
        said = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {'missing': done.stderr[-300:]}
        if 'missing' in said: return print(f'{name}: {said["missing"]}')
        return np.load(f'{tmp}/answers.npy')

def cmfrec(train, test, ids, values, seed):
    from cmfrec import CMF
    info = pd.DataFrame(values, columns=[f'f{k}' for k in range(values.shape[1])]).assign(ItemId=ids)
    names = dict(zip(COLUMNS, ('UserId', 'ItemId', 'Rating'), strict=True))
    known = info[info.ItemId.isin(train['item'])]
    model = CMF(k=20, lambda_=5., w_main=.5, w_item=5., nthreads=1, verbose=False, random_state=seed)
    model.fit(X=train.rename(columns=names), I=known)
    return model.predict_new(test.user.to_numpy(), info.set_index('ItemId').loc[test['item']].reset_index(drop=True))

def lightfm(train, test, ids, values, seed, with_ids=False):
    "Scores (users, items) by id; `test` is not looked at."
    import scipy.sparse as sp
    from lightfm import LightFM
    n_users, n_items = max(train.user.max(), test.user.max()) + 1, max(ids) + 1
    table = np.zeros((n_items, values.shape[1] + 1))
    table[ids,:-1], table[:,-1] = values, 1
    features = sp.csr_matrix(np.hstack([table, np.eye(n_items)]) if with_ids else table)
    pairs = sp.coo_matrix((np.ones(len(train)), (train.user, train['item'])), shape=(n_users, n_items))
    model = LightFM(no_components=32, loss='warp', random_state=seed)
    model.fit(pairs, item_features=features, epochs=10, num_threads=1)
    _, users = model.get_user_representations()
    biases, items = model.get_item_representations(features)
    return users @ items.T + biases

def lightfm_ids(*args): return lightfm(*args, with_ids=True)

def run_peer(name, folder, seed):
    "In the library's Python."
    train, test = (pd.read_csv(f'{folder}/{o}.csv') for o in ('train', 'test'))
    features = np.load(f'{folder}/features.npz')
    try: res = globals()[name](train, test, features['ids'], features['values'], int(seed))
    except ImportError as e: return print(json.dumps({'missing': str(e)}))
    np.save(f'{folder}/answers.npy', res)
    print(json.dumps({}))

def figures(scores, unseen, test, k=10):
    "Recall and NDCG of lists among the unseen items, for users who like some of them."
    liked = np.zeros(scores.shape, dtype=bool)
    liked[test.user, test['item']] = True
    top = unseen[np.argsort(-scores[:,unseen], 1, kind='stable')[:,:k]]
    hits, n = np.take_along_axis(liked, top, 1), liked.sum(1).clip(max=k)
    gains, some = 1/np.log2(np.arange(k) + 2), n > 0
    return (hits.sum(1)/n.clip(1))[some].mean(), ((hits*gains).sum(1)/gains.cumsum()[n.clip(1)-1])[some].mean()

def ranking(ratings, frame, seeds, pythons):
    runs = {}
    for seed in seeds:
        unseen, train, *rest = split(ratings, 'item', seed)
        train, test = (o[o.rating >= 4] for o in (train, pd.concat(rest)))
        size = ratings.user.max() + 1, ratings['item'].max() + 1
        learn = solved(train, seed, {'item': frame}, n_factors=32, loss='ials')
        learn.add_ids('item', frame.loc[unseen])
        tables, scores = dict(learn.model.named_parameters()), np.zeros(size, dtype=np.float32)
        users, items = (v.rows(np.arange(n)) for v, n in zip(learn.vocab.values(), size, strict=True))
        vectors = [tables[f'{o}_weight.weight'].detach().numpy() for o in 'ui']
        scores = vectors[0][users.clip(0)] @ vectors[1][items.clip(0)].T
        counts = train['item'].value_counts().reindex(np.setdiff1d(frame.index, unseen)).fillna(0)
        design = numbers(frame)
        known = design.loc[counts.index].to_numpy()
        popular = np.linalg.solve(known.T @ known + 100*np.eye(known.shape[1]), known.T @ np.log1p(counts))
        floor = np.zeros(size) + np.pad(design.to_numpy() @ popular, (1, 0))
        ways = {'features, ials': scores, 'popularity by features': floor}
        for name in ('lightfm', 'lightfm_ids'):
            said = in_peer(name, {name: pythons.get('lightfm', sys.executable)}, seed, train, test, design)
            if said is not None: ways[name] = said
        for name, o in ways.items(): runs.setdefault(name, []).append(figures(o, unseen, test))
    return report('new items in lists', ['recall@10', 'NDCG@10'], runs)

def calibration(ratings, n_nights=20, z=1.2816):
    "What percentage of ratings the 80% interval holds: of all, and of fifths, narrow to wide."
    import torch

    from collab_pretrained.models.als import fit_rounds, update_posterior
    from collab_pretrained.models.posterior import predicted, start
    df = ratings.dropna(subset='time').sort_values('time', kind='stable')
    x = torch.from_numpy(np.stack([pd.factorize(df[c])[0] + 1 for c in COLUMNS[:2]], 1))
    y = torch.tensor(df.rating.to_numpy(dtype=np.float32))
    cuts = np.linspace(len(df)//2, len(df), n_nights+1).astype(int)
    a, (n_users, n_items) = cuts[0], (x.max(0).values + 1).tolist()
    p = [*fit_rounds(start(y[:a], n_users, n_items), x[:a], y[:a])][-1]
    inside, width = [], []
    for a, b in zip(cuts, cuts[1:], strict=False):
        mean, std = predicted(p, x[a:b])
        inside.append((mean.clamp(y.min(), y.max()) - y[a:b]).abs() < z*std)
        width.append(std)
        p = update_posterior(p, x[a:b], y[a:b])
    inside, width = torch.cat(inside).float(), torch.cat(width)
    return [100*inside[o].mean().item() for o in (slice(None), *width.argsort().chunk(5))]

def main():
    if sys.argv[1:2] == ['--peer']: return run_peer(*sys.argv[2:])
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ['items', 'users', 'ranking', 'calibration']
    p.add_argument('--only', nargs='+', default=parts, choices=parts)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--first-seed', type=int, default=0, help='another one to choose settings on')
    p.add_argument('--out', type=Path, help='CSV file for all figures')
    p.add_argument('--python', nargs='*', default=[], help='NAME=PATH of the Python with a library')
    a = p.parse_args()
    import warnings

    import torch

    from collab_pretrained.core import CollabWarning
    torch.set_num_threads(1)
    warnings.simplefilter('ignore', CollabWarning)
    ratings, frames = read()
    seeds, pythons = range(a.first_seed, a.first_seed + a.seeds), dict(o.split('=', 1) for o in a.python)
    rows = []
    for side in ('item', 'user'):
        if f'{side}s' in a.only: rows += cold(ratings, frames[side], side, seeds, pythons)
    if 'calibration' in a.only:
        from nights import read as ratings_of
        tables = {o: ratings_of(o) for o in ('ml-100k', 'ml-latest-small', 'movietweetings', 'planted')}
        found = {o: [calibration(df.assign(time=np.arange(len(df))))] for o, df in tables.items() if df is not None}
        rows += report('80% intervals, percent inside', ['all', *(f'fifth {k}' for k in range(1, 6))], found)
    if 'ranking' in a.only: rows += ranking(ratings, frames['item'], seeds, pythons)
    if a.out: pd.DataFrame(rows).round(4).to_csv(a.out, index=False)

if __name__ == '__main__': main()
