"""What must hold for any ratings table: ids keep their value, each row is visited once an epoch, each split keeps its
promise."""

import random
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from collab_pretrained.core import NA, CollabWarning, RatingsError
from collab_pretrained.data import batches as data
from collab_pretrained.data.batches import CollabDataset, CollabDL
from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.data.stream import StreamDataset, StreamDL

pytestmark = pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')

ints = st.integers(-2**63, 2**63-1) | st.integers(-5, 20)
texts = st.text(st.characters(exclude_categories=['Cs']), max_size=6).filter(lambda o: o != NA) | st.sampled_from(
    ['1', '1.0', ' 1', 'nan', '', 'é', 'e\u0301']
)
columns = st.sampled_from([ints, texts])
INT_FORMS = ['int64', 'Int64', 'object', 'category', 'int64[pyarrow]']
TEXT_FORMS = ['object', 'str', 'string[python]', 'string[pyarrow]', 'category', 'large_string[pyarrow]']

def forms_of(ids):
    "Dtypes that hold `ids` as they are."
    if isinstance(ids[0], str): return TEXT_FORMS
    return (
        INT_FORMS
        + ['float64'] * (max(map(abs, ids)) < 2**53)
        + ['float32'] * (max(map(abs, ids)) < 2**24)
        + ['uint64'] * (min(ids) >= 0)
    )


@st.composite
def tables(draw, min_rows=1, max_rows=24):
    "A ratings table over few ids, so that they repeat, in columns of any form, under any index."
    n = draw(st.integers(min_rows, max_rows))
    cols = {}
    for name in ('user', 'item'):
        pool = draw(st.lists(draw(columns), min_size=1, max_size=8, unique=True))
        cols[name] = draw(st.lists(st.sampled_from(pool), min_size=n, max_size=n))
    df = pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in cols.items()})
    df['rating'] = draw(st.lists(st.sampled_from([.5, 1., 2.5, 5.]), min_size=n, max_size=n))
    df['time'] = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    df.index = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return df

def in_form(draw, df):
    "`df` with ids in other dtypes; a category has its levels in any order, and some that no row uses."
    forms = {o: draw(st.sampled_from(forms_of(df[o].tolist()))) for o in ('user', 'item')}
    for o, form in forms.items():
        unused = {'unused'} if isinstance(df[o].iloc[0], str) else {77}
        if form == 'category': forms[o] = pd.CategoricalDtype(draw(st.permutations(sorted({*df[o]} | unused))))
    return df.astype(forms)

def rows(df): return list(df[['user', 'item', 'rating']].itertuples(index=False, name=None))

def rows_of(ds): return rows(ds.items)

@given(st.data(), tables())
def test_ids_keep_their_value_in_any_form(d, df):
    given_df = in_form(d.draw, df)
    before = given_df.copy(deep=True)
    dls = CollabDataLoaders.from_df(given_df, splits=(range(len(df)), []))
    pd.testing.assert_frame_equal(given_df, before)
    assert rows_of(dls.train_ds) == rows(df)
    for name, vocab in dls.classes.items():
        assert vocab[0] == NA and set(vocab.ids) == set(df[name])
        if given_df[name].dtype != 'category': assert vocab.ids.tolist() == sorted(set(df[name]))

@given(st.data(), tables())
def test_prediction_reads_ids_by_value(d, df):
    dls = CollabDataLoaders.from_df(in_form(d.draw, df), valid_pct=0.)
    asked = df.iloc[d.draw(st.permutations(range(len(df))))]
    assert rows_of(dls.test_dl(in_form(d.draw, asked)).dataset) == rows(asked)

@given(st.data(), tables())
def test_unknown_ids_take_na_and_no_others(d, df):
    known = d.draw(st.sets(st.sampled_from(df.user.tolist()), min_size=1))
    dls = CollabDataLoaders.from_df(df[df.user.isin(known)], valid_pct=0.)
    asked = df[df.item.isin(set(dls.classes['item'].ids))]
    expected = [(u if u in known else NA, i, r) for u, i, r in rows(asked)]
    assert rows_of(dls.test_dl(asked).dataset) == expected

@given(tables(), st.sampled_from([str, lambda o: int(o, 36) if isinstance(o, str) else None]))
def test_ids_of_the_other_kind_are_refused(df, cast):
    try: other = df.assign(user=[cast(o) for o in df.user])
    except ValueError: assume(False)
    assume(all(type(o) is not type(p) and o is not None for o, p in zip(other.user, df.user, strict=True)))
    assume(other.user.map(lambda o: isinstance(o, str) or abs(o) < 2**63).all())
    dls = CollabDataLoaders.from_df(df, valid_pct=0.)
    with pytest.raises(RatingsError, match='user'): dls.test_dl(other)

@given(tables(min_rows=2), st.data())
def test_two_kinds_in_a_column_are_refused(df, d):
    k = d.draw(st.integers(0, len(df)-1))
    users = df.user.tolist()
    users[k] = 7 if isinstance(users[k], str) else '7'
    with pytest.raises(RatingsError, match="'user'.*int and str"):
        CollabDataLoaders.from_df(df.assign(user=pd.Series(users, dtype=object).array))


@given(tables(min_rows=2), st.data())
def test_missing_values_raise_or_leave_with_their_rows(df, d):
    holes = d.draw(st.sets(st.tuples(st.integers(0, len(df)-1), st.integers(0, 2)), min_size=1))
    with_holes = df.reset_index(drop=True).astype(object)
    for row, col in holes: with_holes.iloc[row, col] = d.draw(st.sampled_from([None, np.nan, pd.NA, pd.NaT]))
    whole = sorted(set(range(len(df))) - {row for row, _ in holes})
    assume(whole)
    with pytest.raises(RatingsError, match='missing'): CollabDataLoaders.from_df(with_holes)
    n_train = d.draw(st.integers(1, len(df)))
    assume(any(o < n_train for o in whole))
    with pytest.warns(CollabWarning, match=f'{len(df)-len(whole)} rows left out'):
        dls = CollabDataLoaders.from_df(with_holes, on_missing='drop', splits=(range(n_train), range(n_train, len(df))))
    for ds, part in (
        (dls.train_ds, [o for o in whole if o < n_train]),
        (dls.valid_ds, [o for o in whole if o >= n_train]),
    ):
        assert rows_of(ds) == rows(df.iloc[part])

@given(tables(), st.sampled_from(['last', 'mean']), st.booleans())
def test_repeated_pairs_become_one(df, how, by_time):
    dls = CollabDataLoaders.from_df(df, duplicates=how, valid_pct=0., time_name='time' if by_time else None)
    by_pair = df.assign(row=range(len(df))).sort_values(['time', 'row'] if by_time else 'row').groupby(['user', 'item'])
    expected, last = by_pair.rating.agg(how).to_dict(), by_pair.row.last()
    got = rows_of(dls.train_ds)
    assert [o[:2] for o in got] == [o[:2] for o in rows(df.iloc[sorted(last)])]  # where each pair's last row was
    for u, i, r in got: assert r == pytest.approx(expected[u, i])

@given(
    st.integers(0, 12),
    st.integers(1, 40),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(1, 100),
)
def test_every_row_once_an_epoch(n_full, bs, rest, shuffle, drop_last, seed, block_rows):
    n = n_full*bs + rest
    ds = CollabDataset((torch.arange(n)[:, None].repeat(1, 2), torch.arange(n, dtype=torch.float32)[:, None]), {})
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    loaders = [CollabDL(ds, bs=bs, shuffle=shuffle, drop_last=drop_last, seed=seed) for _ in range(2)]
    old, data._block_rows = data._block_rows, block_rows
    try:
        if len(loaders[0]): loaders[0].one_batch()  # a look changes nothing
        epochs = [[list(dl) for _ in range(2)] for dl in loaders]
    finally: data._block_rows = old
    assert (
        torch.equal(states[0], torch.get_rng_state())
        and states[1] == random.getstate()
        and (states[2] == np.random.get_state()[1]).all()
    )
    orders = [[[int(o) for x, y in batches for o in y] for batches in epoch] for epoch in epochs]
    assert orders[0] == orders[1]
    for batches, order in zip(epochs[0], orders[0], strict=True):
        assert len(batches) == len(loaders[0]) and all((x == y).all() for x, y in batches)
        assert len(set(order)) == len(order) == (n//bs*bs if drop_last else n) and set(order) <= set(range(n))
        sizes = [len(y) for _, y in batches]
        if not drop_last and n > 1 and bs > 1: assert 1 not in sizes
        assert all(o <= bs + (not drop_last) for o in sizes)
        if not shuffle: assert order == list(range(len(order)))
    if shuffle and len(orders[0][0]) > 20: assert orders[0][0] != orders[0][1]

@given(
    st.integers(0, 2000),
    st.integers(1, 70),
    st.integers(64, 1500),
    st.booleans(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
)
def test_every_row_of_a_stream_once_an_epoch(n, bs, window, shuffle, drop_last, seed):
    file = tempfile.TemporaryFile()
    file.write(np.arange(n, dtype=np.int32)[:, None].repeat(3, 1).tobytes())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    loaders = [
        StreamDL(StreamDataset(file, {}), bs=bs, shuffle=shuffle, drop_last=drop_last, seed=seed, window=window)
        for _ in range(2)
    ]
    if len(loaders[0]): loaders[0].one_batch()  # a look changes nothing
    epochs = [[[x for x, y in dl] for _ in range(2)] for dl in loaders]
    assert (
        torch.equal(states[0], torch.get_rng_state())
        and states[1] == random.getstate()
        and (states[2] == np.random.get_state()[1]).all()
    )
    orders = [[[int(o) for x in batches for o in x[:,0]] for batches in epoch] for epoch in epochs]
    assert orders[0] == orders[1]
    for batches, order in zip(epochs[0], orders[0], strict=True):
        assert [len(x) for x in batches] == data.batch_sizes(n, bs, drop_last) and len(batches) == len(loaders[0])
        assert len(set(order)) == len(order) and set(order) <= set(range(n))
        if not shuffle: assert order == list(range(len(order)))
        place = {row: at for at, row in enumerate(order)}  # neighbours of one piece stay less than a window apart
        for start in range(0, n, window//64):
            at = [place[o] for o in range(start, min(start + window//64, n)) if o in place]
            assert not at or max(at) - min(at) < window
    if shuffle and n > 50 and len(orders[0][0]) > 20: assert orders[0][0] != orders[0][1]

@given(st.data(), tables(min_rows=2))
def test_a_stream_is_the_table(d, df):
    import polars as pl
    n = d.draw(st.integers(1, len(df)-1))
    df = df.assign(part=np.arange(len(df)) >= n)
    lf = pl.from_pandas(df.reset_index(drop=True).convert_dtypes()).lazy()
    streamed, whole = (
        CollabDataLoaders.from_stream(lf, splits=pl.col('part')),
        CollabDataLoaders.from_df(df, splits=(range(n), range(n, len(df)))),
    )
    assert streamed.classes == whole.classes and streamed.report == whole.report
    for a, b in zip(streamed.loaders, whole.loaders, strict=True): assert rows_of(a.dataset) == rows_of(b.dataset)

def split(df, how, **kw):
    "Positions that train and validate; None where the split refuses the table."
    try:
        dls = CollabDataLoaders.from_df(
            df.assign(rating=np.arange(len(df), dtype=float)), splits=how, time_name='time', **kw
        )
    except RatingsError as e:
        assert 'same time' in str(e)
        return None
    train, valid = ([int(o) for o in ds.tensors[1]] for ds in (dls.train_ds, dls.valid_ds))
    assert sorted(train + valid) == list(range(len(df)))
    return train, valid

@pytest.mark.parametrize('how', ['random', 'time', 'user_time', 'last_n', 'by_user', 'by_item'])
@given(df=tables(min_rows=2), valid_pct=st.integers(0, 9).map(lambda o: o/10), seed=st.integers(0, 2**32))
def test_splits_keep_their_promise(how, df, valid_pct, seed):
    parts = split(df, how, valid_pct=valid_pct, seed=seed)
    if parts is None: return
    assert parts == split(df, how, valid_pct=valid_pct, seed=seed)
    train, valid = (df.iloc[o].assign(row=o) for o in parts)
    if how == 'random': assert len(valid) == int(valid_pct*len(df))
    if how == 'time' and len(valid):
        assert valid.time.min() > train.time.max()
        shares = [(df.time >= t).sum() for t in set(df.time) if t > df.time.min()]  # what splits by time can give
        assert abs(len(valid) - int(valid_pct*len(df))) == min(abs(o - int(valid_pct*len(df))) for o in shares)
    if how == 'by_user': assert not set(train.user) & set(valid.user)
    if how == 'by_item': assert not set(train.item) & set(valid.item)
    if how in ('user_time', 'last_n'):
        assert set(df.user) == set(train.user)
        for user, rows in valid.groupby('user'):
            own = train[train.user == user]
            assert max(zip(own.time, own.row, strict=True)) < min(zip(rows.time, rows.row, strict=True))
            if how == 'last_n': assert len(rows) == 1
        if how == 'last_n': assert set(valid.user) == {u for u, n in df.user.value_counts().items() if n > 1}

@given(tables(), st.integers(1, 4), st.integers(0, 100))
def test_rare_ids_share_the_row_of_na(df, min_count, seed):
    dls = CollabDataLoaders.from_df(df, seed=seed, min_count=min_count)
    whole = CollabDataLoaders.from_df(df, seed=seed)
    trained = pd.DataFrame(rows_of(whole.train_ds), columns=['user', 'item', 'rating'])
    for name, vocab in dls.classes.items():
        counts = trained[name].value_counts()
        assert set(vocab.ids) == {o for o in set(df[name]) if counts.get(o, 0) >= min_count}
    kept = [{NA, *v.ids} for v in dls.classes.values()]
    for ds, full in ((dls.train_ds, whole.train_ds), (dls.valid_ds, whole.valid_ds)):
        assert rows_of(ds) == [(u if u in kept[0] else NA, i if i in kept[1] else NA, r) for u, i, r in rows_of(full)]
