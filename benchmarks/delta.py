"""What does a night change, and do vectors stay where they were for those who train on them?

Usage: python benchmarks/delta.py [--nights 30] [--out FILE.csv]   (two minutes; one thread)

Half of MovieLens 100K, in order of time, trains the first model (`fit_als`, 20 factors); the rest comes in equal
nights. Each night is saved whole and as a delta, and a usearch index of the items, and a table of LanceDB where that is
installed, take the changes of `export_vectors(since=)`. Checked at the end: the first folder and all deltas give the
last folder, byte for byte; the index and the table of the first night with 30 nights of changes have each item's vector
of a fresh export, and answer as fresh ones do. `changed` are the shares of rows that a night changed, `size` the delta
over the bytes of the changed rows.

The second table: a ridge regression learns genres (of at least 50 films) from the item vectors of the first night, on a
random half of the films; its mean area under the ROC curve on the other half, given the vectors of the first night, of
the last one after 30 updates, of `fit_als` on all ratings, and of that brought back by `align`. `kept` compares the
excess over one half with that of the first night. `lossless`: the largest difference in a prediction by `align`."""

import argparse
import os

for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'
import tempfile  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from fastai.data.external import URLs, untar_data  # noqa: E402
from sklearn.linear_model import Ridge  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from usearch.index import Index  # noqa: E402

from collab_pretrained.all import CollabDataLoaders, CollabLearner, apply_delta, collab_learner  # noqa: E402
from collab_pretrained.weights.folders import read_folder  # noqa: E402

PATH = untar_data(URLs.ML_100k)


def solved(df):
    learn = collab_learner(CollabDataLoaders.from_df(df, valid_pct=0., seed=0), n_factors=20)
    with learn.no_bar(), learn.no_logging(): learn.fit_als(10)
    return learn


def tensors(folder):
    "All tensors with a row for each user or item."
    wgts, _, config = read_folder(folder)
    posterior = config['tables']['posterior']
    names = [*wgts, *(k for k in posterior if k.startswith(('user.', 'item.')))]
    return {k: (k[0], t.reshape(len(t), -1)) for k, t in {**wgts, **posterior}.items() if k in names}


def changes(old, new, n_pairs):
    "Shares of users' and items' rows that differ, and bytes of the rows of each table that do."
    rows, size = {'u': set(), 'i': set()}, 8*n_pairs
    old, new = tensors(old), tensors(new)
    for k, (side, t) in new.items():
        was = old[k][1]
        changed = np.append((t[:len(was)] != was).any(1).nonzero()[:,0], np.arange(len(was), len(t)))
        rows[side] |= {*changed.tolist()}
        size += len(changed)*t[0].nbytes
    return [len(rows[k[0]])/len(new[k][1]) for k in ('u_weight.weight', 'i_weight.weight')] + [size]


def read_vectors(path):
    table = pd.read_parquet(path)
    return table.id.to_numpy(), np.stack(table.vector) if len(table) else np.empty((0, 21), np.float32)


def put(index, folder):
    "Take over the changes of one night."
    for i in pd.read_parquet(folder/'items_deleted.parquet').id: index.remove(i)
    ids, vectors = read_vectors(folder/'items.parquet')
    for i in ids[index.contains(ids)]: index.remove(i)
    if len(ids): index.add(ids, vectors)


def indexed(learn, folder):
    index, (ids, vectors) = Index(ndim=21, metric='ip', dtype='f32'), read_vectors(learn.export_vectors(folder)[1])
    index.add(ids, vectors)
    return index


def stored(tmp, name, folder):
    "A LanceDB table of the items; None where that is not installed."
    try: import lancedb  # noqa: I001
    except ImportError: return None
    return lancedb.connect(tmp/'lance').create_table(name, pq.read_table(folder/'items.parquet'))


def merge(table, folder):
    "Take over the changes of one night."
    gone = pd.read_parquet(folder/'items_deleted.parquet').id
    if len(gone): table.delete(f'id in ({", ".join(map(str, gone))})')
    table.merge_insert('id').when_matched_update_all().when_not_matched_insert_all().execute(
        pq.read_table(folder/'items.parquet'))


def answers(table, queries):
    "The vectors of a LanceDB table by id, and its lists."
    lists = [table.search(o).distance_type('dot').limit(10).to_arrow()['id'].to_pylist() for o in queries]
    return table.to_arrow().sort_by('id').to_pydict(), lists


def nights(df, n, tmp):
    "Play the nights; the table of each one, the last learner, and whether folder and index are those of a fresh save."
    first, cuts = solved(df[:len(df)//2]), np.linspace(len(df)//2, len(df), n + 1).astype(int)
    first.save_pretrained(tmp/'0')
    index, table = indexed(first, tmp/'vectors'), stored(tmp, 'nights', tmp/'vectors')
    rows, learn = [], CollabLearner.from_pretrained(tmp/'0')
    for k, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        with learn.no_bar(): learn.update(df[a:b])
        learn.save_pretrained(tmp/f'{k + 1}')
        delta = learn.save_delta(tmp/f'{k + 1}.delta', since=tmp/f'{k}')
        learn.export_vectors(tmp/'changes', since=tmp/f'{k}')
        put(index, tmp/'changes')
        if table: merge(table, tmp/'changes')
        users, items, size = changes(tmp/f'{k}', tmp/f'{k + 1}', b - a)
        whole, written = sum(o.stat().st_size for o in (tmp/f'{k + 1}').iterdir()), delta.stat().st_size
        rows.append({'users': users, 'items': items, 'size': written/size, 'whole': written/whole})
    apply_delta(tmp/'0', tmp/'1.delta', out=tmp/'replica')
    for k in range(2, n + 1): apply_delta(tmp/'replica', tmp/f'{k}.delta')
    same = all((tmp/'replica'/o.name).read_bytes() == o.read_bytes() for o in (tmp/f'{n}').iterdir())
    fresh, (ids, _) = indexed(learn, tmp/'fresh'), read_vectors(tmp/'fresh/items.parquet')
    _, queries = read_vectors(tmp/'fresh/users.parquet')
    lists = [o.search(queries, 10, exact=True).keys for o in (index, fresh)]
    vectors = [np.stack([*o.get(ids)]) for o in (index, fresh)]
    found = {'last folder': same, 'vectors': np.array_equal(*vectors), 'lists': np.array_equal(*lists)}
    if table:
        own, new = (answers(o, queries[:200]) for o in (table, stored(tmp, 'fresh', tmp/'fresh')))
        found |= {'LanceDB, vectors': own[0] == new[0], 'LanceDB, lists': own[1] == new[1]}
    return pd.DataFrame(rows), first, learn, found


def genres():
    table = pd.read_csv(PATH/'u.item', sep='|', header=None, encoding='latin-1', index_col=0).iloc[:,4:]
    return table.loc[:,table.sum() >= 50]


def auc(model, vectors, labels):
    predicted = model.predict(vectors)
    return np.mean([roc_auc_score(*o) for o in zip(labels.T, predicted.T, strict=True)])


def item_rows(learn, ids): return learn.vocab['item'].rows(np.array(ids))


def products(wgts): return wgts['u_weight.weight'] @ wgts['i_weight.weight'].T


def stability(df, first, last):
    "Scores of a model of the first vectors on later ones, and the largest change of a prediction by `align`."
    table = genres().loc[lambda o: o.index.isin(first.vocab['item'].ids)]
    is_test = np.random.default_rng(0).random(len(table)) < .5
    train, test = table[~is_test], table[is_test]
    again = solved(df)
    aligned = first.align(again).wgts
    ways = {name: (o, {**o.model.state_dict()}) for name, o in
            {'first night': first, 'updates': last, 'fit_als': again}.items()}
    ways['fit_als, aligned'] = again, aligned
    def vectors(way, ids): return ways[way][1]['i_weight.weight'][item_rows(ways[way][0], ids)].numpy()
    model = Ridge(1.).fit(vectors('first night', train.index), train)
    scores = {k: auc(model, vectors(k, test.index), test.to_numpy()) for k in ways}
    kept = {k: (o - .5)/(scores['first night'] - .5) for k, o in scores.items()}
    lossless = float((products(aligned) - products(again.model.state_dict())).abs().max())
    return pd.DataFrame({'AUC': scores, 'kept': kept}), lossless


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--nights', type=int, default=30)
    parser.add_argument('--out', help='a CSV file for the table of nights')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    df = pd.read_csv(PATH/'u.data', sep='\t', names=['user', 'item', 'rating', 'time'])
    df = df.sort_values('time', kind='stable')[['user', 'item', 'rating']]
    with tempfile.TemporaryDirectory() as tmp: table, first, last, same = nights(df, args.nights, Path(tmp).resolve())
    print(f'equal to a fresh save: {same}')
    print(table.describe().loc[['mean', 'min', 'max']].round(3).to_string())
    scores, lossless = stability(df, first, last)
    print(scores.round(3).to_string(), f'lossless: {lossless:.1e}', sep='\n')
    if args.out: table.round(4).to_csv(args.out, index_label='night')


if __name__ == '__main__': main()
