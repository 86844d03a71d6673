"""Weights of other libraries, made by the libraries themselves: imported, they score as the library does, and a learner
goes on from there.

`make test` installs those that come as wheels. lightfm and cmfrec are built by a compiler: the extra `interop` has
them, and the nightly run."""

import os
import time

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # as implicit asks for

import fastai.collab
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quiet

from collab_pretrained.all import (
    CheckpointError,
    CollabDataLoaders,
    CollabError,
    CollabWarning,
    WeightsError,
    collab_learner,
    planted_ratings,
)
from collab_pretrained.weights.importers import (
    from_cmfrec,
    from_gensim,
    from_implicit,
    from_lightfm,
    from_surprise,
    load_export,
    read_vectors,
)
from collab_pretrained.weights.pretrained import Pretrained, from_arrays

N_FACTORS = 6


def library(name):
    "The module `name`, or a skip that says how to get it."
    return pytest.importorskip(
        name,
        reason=f"{name} is not installed: `pip install -c constraints.txt -e '.[interop]'`, "
        'which needs a C compiler for lightfm and cmfrec',
    )


@pytest.fixture(scope='module')
def ratings():
    "Users of text and items of integers, in an order that isn't that of their rows."
    df = planted_ratings(40, 30, 800).query('period == "early"')
    return (
        df.assign(user='u' + df.user.astype(str), item=df.item * 10)
        .sample(frac=1, random_state=1)[['user', 'item', 'rating']]
        .reset_index(drop=True)
    )


@pytest.fixture(scope='module')
def matrix(ratings):
    "The ids of the rows and of the columns, and the sparse matrix of ratings."
    sparse = library('scipy.sparse')
    (rows, users), (cols, items) = (pd.factorize(ratings[o]) for o in ('user', 'item'))
    return users, items, sparse.csr_matrix((ratings.rating.astype(np.float32), (rows, cols)))


def all_pairs(users, items): return pd.DataFrame([(u, i) for u in users for i in items], columns=['user', 'item'])


def check(pre:Pretrained, pairs, scores, ratings):
    """The imported weights score `pairs` as the library does, and so does a learner over another vocabulary that starts
    from them."""
    np.testing.assert_allclose(pre.scores(pairs.user, pairs.item), scores, atol=1e-5)
    new = pd.concat([ratings, pd.DataFrame({'user': ['a_new_one']*3, 'item': [7, 8, 10], 'rating': [1., 2, 3]})])
    dls = CollabDataLoaders.from_df(new[new.item != ratings.item[0]], seed=1)
    width = pre.wgts['u_weight.weight'].shape[1]
    learn = collab_learner(dls, n_factors=width, pretrained=pre)
    known = pairs.user.isin(list(dls.classes['user'])) & pairs.item.isin(list(dls.classes['item']))
    assert 0 < known.sum() < len(pairs)
    with learn.no_bar(): preds = learn.get_preds(dl=dls.test_dl(pairs[known]))[0]
    np.testing.assert_allclose(preds, np.asarray(scores)[known], atol=1e-5)
    quiet(learn, 'fit_one_cycle', 1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1]).all()


@pytest.fixture(scope='module')
def word2vec(ratings):
    models = library('gensim.models')
    baskets = ratings.groupby('user').item.apply(lambda o: list(map(str, o))).tolist()
    return models.Word2Vec(baskets, vector_size=N_FACTORS, min_count=1, workers=1, seed=1, epochs=3)


def test_gensim_vectors_are_those_of_the_key(word2vec):
    for pre in (from_gensim(items=word2vec), from_gensim(items=word2vec.wv)):
        assert list(pre.wgts) == ['i_weight.weight'] and pre.vocab[1].kind == 'int'
        for row, i in enumerate(pre.vocab[1].ids):
            assert (pre.wgts['i_weight.weight'][row].numpy() == word2vec.wv[str(i)]).all()


@pytest.mark.parametrize('binary', [False, True])
def test_gensim_files(word2vec, tmp_path, binary):
    word2vec.wv.save_word2vec_format(tmp_path/'items', binary=binary)
    ids, vectors = read_vectors(tmp_path/'items')
    assert ids == [int(o) for o in word2vec.wv.index_to_key]
    np.testing.assert_array_equal(vectors, word2vec.wv.vectors)


def test_gensim_starts_a_learner(word2vec, ratings):
    dls = CollabDataLoaders.from_df(ratings, seed=1)
    with pytest.warns(CollabWarning, match='u_weight'):
        learn = collab_learner(dls, n_factors=N_FACTORS, y_range=(0, 5.5), pretrained=from_gensim(items=word2vec))
    for i in ratings.item[:5]: np.testing.assert_array_equal(learn.model.weight([i])[0], word2vec.wv[str(i)])


def test_gensim_documents_are_users(ratings):
    doc2vec = library('gensim.models.doc2vec')
    baskets = [doc2vec.TaggedDocument(list(map(str, o)), [u]) for u, o in ratings.groupby('user').item]
    model = doc2vec.Doc2Vec(baskets, vector_size=N_FACTORS, min_count=1, workers=1, epochs=2)
    pre = from_gensim(users=model.dv, items=model)
    u, i = ratings.user[0], ratings.item[0]
    assert pre.scores([u], [i]).item() == pytest.approx(float(model.dv[u].astype(float) @ model.wv[str(i)]), abs=1e-5)


@pytest.mark.parametrize(
    'module, name',
    [
        ('als', 'AlternatingLeastSquares'),
        ('bpr', 'BayesianPersonalizedRanking'),
        ('lmf', 'LogisticMatrixFactorization'),
    ],
)
def test_implicit(module, name, matrix, ratings):
    kw = {} if module == 'lmf' else {'use_gpu': False}
    model = getattr(library(f'implicit.{module}'), name)(
        factors=N_FACTORS, iterations=5, random_state=1, num_threads=1, **kw
    )
    users, items, m = matrix
    m = m.tolil()
    m[3] = 0  # a user without a single interaction
    m = m.tocsr()
    model.fit(m, show_progress=False)
    cols, scores = model.recommend(np.arange(len(users)), m, N=len(items), filter_already_liked_items=False)
    by_col = np.take_along_axis(scores, np.argsort(cols, 1), 1)
    pre = from_implicit(model, users, {i: col for col, i in enumerate(items)})
    assert pre.wgts['u_weight.weight'].shape == (len(users), N_FACTORS)
    check(pre, all_pairs(users, items), by_col.ravel(), ratings)


@pytest.mark.parametrize('features', [False, True])
def test_lightfm(features, ratings):
    lightfm, data = library('lightfm'), library('lightfm.data')
    ds = data.Dataset()
    ds.fit(ratings.user, ratings.item, item_features=['cheap', 'dear'])
    kw = (
        {'item_features': ds.build_item_features((i, ['cheap' if i % 20 else 'dear']) for i in ratings.item.unique())}
        if features
        else {}
    )
    model = lightfm.LightFM(no_components=N_FACTORS, random_state=1, loss='warp')
    model.fit(ds.build_interactions(zip(ratings.user, ratings.item, strict=True))[0], epochs=3, **kw)
    users, _, items, _ = ds.mapping()
    pairs = all_pairs(users, items)
    want = model.predict(pairs.user.map(users).to_numpy(np.int32), pairs.item.map(items).to_numpy(np.int32), **kw)
    check(from_lightfm(model, users, items, **kw), pairs, want, ratings)


@pytest.mark.parametrize(
    'name, kw', [('SVD', {}), ('SVD', {'biased': False}), ('SVDpp', {}), ('NMF', {}), ('NMF', {'biased': True})]
)
def test_surprise(name, kw, ratings):
    surprise = library('surprise')
    trainset = surprise.Dataset.load_from_df(ratings, surprise.Reader(rating_scale=(.5, 5))).build_full_trainset()
    algo = getattr(surprise, name)(n_factors=N_FACTORS, n_epochs=5, random_state=1, **kw).fit(trainset)
    pairs = all_pairs(ratings.user.unique(), ratings.item.unique())
    want = [algo.estimate(trainset.to_inner_uid(u), trainset.to_inner_iid(i)) for u, i in pairs.itertuples(index=False)]
    pre = from_surprise(algo)
    check(pre, pairs, want, ratings)
    with pytest.raises(WeightsError, match='y_range=None'):
        collab_learner(
            CollabDataLoaders.from_df(ratings, seed=1), n_factors=N_FACTORS, y_range=(0, 5.5), pretrained=pre
        )


@pytest.mark.parametrize(
    'name, kw', [('CMF', {}), ('CMF', {'center': False}), ('CMF', {'k_user': 2}), ('CMF_implicit', {})]
)
def test_cmfrec(name, kw, ratings):
    cmfrec = library('cmfrec')
    df = ratings.rename(
        columns={'user': 'UserId', 'item': 'ItemId', 'rating': 'Value' if name == 'CMF_implicit' else 'Rating'}
    )
    about = (
        {
            'U': pd.DataFrame(
                {'UserId': df.UserId.unique(), 'age': np.linspace(-1, 1, df.UserId.nunique()), 'height': 1.0}
            )
        }
        if 'k_user' in kw
        else {}
    )
    model = getattr(cmfrec, name)(k=N_FACTORS, lambda_=.1, nthreads=1, verbose=False, **kw).fit(df, **about)
    pairs = all_pairs(ratings.user.unique(), ratings.item.unique())
    check(from_cmfrec(model), pairs, model.predict(pairs.user, pairs.item), ratings)


def test_cmfrec_factors_of_the_ratings_alone(ratings):
    "Against `topN`: of pairs, cmfrec 3.5's own `predict` leaves the `k_main` factors out."
    cmfrec = library('cmfrec')
    model = cmfrec.CMF(k=N_FACTORS, k_main=2, lambda_=0.1, nthreads=1, verbose=False).fit(
        ratings.set_axis(['UserId', 'ItemId', 'Rating'], axis=1)
    )
    users, n = ratings.user.unique()[:5], ratings.item.nunique()
    top = [
        pd.DataFrame(
            dict(zip(('item', 'score'), model.topN(u, n=n, output_score=True), strict=True)), dtype=object
        ).assign(user=u)
        for u in users
    ]
    top = pd.concat(top, ignore_index=True)
    check(from_cmfrec(model), top.astype({'item': int}), top.score.astype(float), ratings)


def test_cmfrec_of_a_matrix(matrix, ratings):
    cmfrec = library('cmfrec')
    users, items, m = matrix
    model = cmfrec.CMF(k=N_FACTORS, lambda_=.1, nthreads=1, verbose=False).fit(m.tocoo())
    with pytest.raises(WeightsError, match='no ids'): from_cmfrec(model)
    rows, cols = np.divmod(np.arange(len(users)*len(items)), len(items))
    check(from_cmfrec(model, users, items), all_pairs(users, items), model.predict(rows, cols), ratings)


def test_export_of_fastai_itself(ratings, tmp_path):
    dls = fastai.collab.CollabDataLoaders.from_df(ratings, seed=1, path=tmp_path)
    learn = fastai.collab.collab_learner(dls, n_factors=N_FACTORS, y_range=(0, 5.5))
    learn.export('export.pkl')
    for source in (load_export(tmp_path/'export.pkl', trust=True), learn):
        again = collab_learner(
            CollabDataLoaders.from_df(ratings, seed=1), n_factors=N_FACTORS, y_range=(0, 5.5), pretrained=source
        )
        assert again.match_report.users.coverage == again.match_report.items.coverage == 1
        for o in ratings.item.unique(): assert torch.equal(again.model.weight([o]), learn.model.weight([o]))


@pytest.mark.parametrize('use_nn', [False, True])
def test_export(use_nn, ratings, tmp_path):
    dls = CollabDataLoaders.from_df(ratings, seed=1, path=tmp_path)
    learn = collab_learner(dls, n_factors=N_FACTORS, use_nn=use_nn, y_range=(0, 5.5))
    learn.export('export.pkl')
    with pytest.raises(CheckpointError, match='trust=True'): load_export(tmp_path/'export.pkl')
    again = collab_learner(
        dls,
        n_factors=N_FACTORS,
        use_nn=use_nn,
        y_range=(0, 5.5),
        pretrained=load_export(tmp_path / 'export.pkl', trust=True),
    )
    for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(WeightsError, match=r'y_range=\(0.0, 5.5\)'):
        collab_learner(
            dls, n_factors=N_FACTORS, use_nn=use_nn, pretrained=load_export(tmp_path / 'export.pkl', trust=True)
        )


def test_a_foreign_state_dict(ratings, tmp_path):
    "As RecBole saves it: other names, no biases, and a table that has nothing to do with ids."
    dls = CollabDataLoaders.from_df(ratings, seed=1, path=tmp_path)
    u, i = (len(o) for o in dls.classes.values())
    wgts = {
        'user_embedding.weight': torch.randn(u, N_FACTORS),
        'item_embedding.weight': torch.randn(i, N_FACTORS).half(),
        'mlp.0.weight': torch.randn(3, N_FACTORS),
    }
    keys = {'u_weight': 'user_embedding.weight', 'i_weight': 'item_embedding.weight'}
    pre = Pretrained(wgts, dls.classes)
    with pytest.raises(WeightsError, match='user_embedding.weight'):
        collab_learner(dls, n_factors=N_FACTORS, pretrained=pre)
    with pytest.warns(CollabWarning, match='u_bias'):
        learn = collab_learner(dls, n_factors=N_FACTORS, pretrained=pre, keys=keys)
    assert (
        torch.equal(learn.model.u_weight.weight, wgts['user_embedding.weight'])
        and learn.model.i_weight.weight.dtype == torch.float32
    )
    assert torch.equal(learn.model.i_weight.weight, wgts['item_embedding.weight'].float())


def damaged(raw, rng):
    "`raw`, cut short, with a bit flipped, with some bytes changed, with a few gone or a few too many."
    b, at = bytearray(raw), rng.integers(len(raw))
    some = rng.integers(0, 256, rng.integers(1, 9), dtype=np.uint8).tobytes()
    return bytes(
        [
            lambda: b[:at],
            lambda: b[:at] + bytes([b[at] ^ 1 << rng.integers(8)]) + b[at + 1 :],
            lambda: b[:at] + some + b[at + len(some) :],
            lambda: b[:at] + b[at + len(some) :],
            lambda: b[:at] + some + b[at:],
        ][rng.integers(5)]()
    )


@pytest.mark.parametrize('ending', ['parquet', 'csv', 'npz', 'txt', 'bin'])
def test_damaged_files_of_vectors(ending, tmp_path, times):
    "Each is read as what it says, or refused in words of ours, at once."
    rng = np.random.default_rng(1)
    ids, vecs = [f'i{k}' for k in range(12)], rng.normal(size=(12, 5)).astype(np.float32)
    path = tmp_path/f'a.{ending}'
    if ending == 'parquet':
        pd.DataFrame({'id': ids, 'v': list(vecs)}).to_parquet(path)
    elif ending == 'csv':
        pd.DataFrame(vecs, pd.Index(ids, name='id')).to_csv(path)
    elif ending == 'npz':
        np.savez_compressed(path, ids=np.array(ids), vectors=vecs)
    elif ending == 'txt':
        path.write_text(
            '12 5\n' + ''.join(f'{i} {" ".join(map(str, v))}\n' for i, v in zip(ids, vecs.tolist(), strict=True))
        )
    else:
        path.write_bytes(b'12 5\n' + b''.join(i.encode() + b' ' + v.tobytes() for i, v in zip(ids, vecs, strict=True)))
    np.testing.assert_array_equal(
        from_arrays(None, None, *read_vectors(path)).wgts['i_weight.weight'].numpy().astype(np.float32), vecs
    )
    raw, refused = path.read_bytes(), 0
    for _ in range(times(1500)):
        path.write_bytes(damaged(raw, rng))
        before = time.process_time()
        try: from_arrays(None, None, *read_vectors(path))
        except CollabError as e:
            refused += 1
            assert str(path) in str(e) or 'items' in str(e)
        assert time.process_time() - before < 1
    assert refused > times(1500)/3


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_tensors_of_a_gpu(ratings):
    dls = CollabDataLoaders.from_df(ratings, seed=1)
    users, items = (o.ids for o in dls.classes.values())
    vecs = [torch.randn(len(o), N_FACTORS, device='cuda') for o in (users, items)]
    pre = from_arrays(users, vecs[0], items, vecs[1])
    assert {o.device.type for o in pre.wgts.values()} == {'cpu'} and torch.equal(
        pre.wgts['u_weight.weight'], vecs[0].cpu()
    )
