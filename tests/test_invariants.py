"""The invariants of the design that random vocabularies, permutations, dtypes and fills can break: rows, ids, `'#na#'`,
arguments, frozen rows, errors."""

import copy
import random
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.optimizer import SGD, Adam, OptimWrapper, RMSProp, ranger
from helpers import quiet
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from collab_pretrained.all import (
    CheckpointNotFoundError,
    CollabDataLoaders,
    CollabError,
    RatingsError,
    VocabError,
    WeightsError,
    collab_learner,
    match_embeds,
    match_vocab,
)
from collab_pretrained.core import NA
from collab_pretrained.ids.canonical import canonical_ids
from collab_pretrained.ids.matching import match_classes
from collab_pretrained.ids.vocab import Vocab
from collab_pretrained.weights.roles import layouts, roles

def given_some(*args, n=40):
    return lambda f: settings(max_examples=n, deadline=None, phases=[o for o in Phase if n >= 30 or o != Phase.shrink])(
        given(*args)(f)
    )


pytestmark = pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ints = st.integers(-2**63, 2**63-1) | st.integers(-3, 12)
dtypes = st.sampled_from(DTYPES)
texts = st.text(st.characters(exclude_categories=['Cs']), max_size=4).filter(
    lambda o: o not in (NA, 'xxfake')
) | st.sampled_from(
    ['1', '01', ' 1', '1.0', '+1', 'True', 'nan', '', 'é', 'e\u0301', 'É', '#NA#', '#na# ']
)  # what a lossy cast would take for another

# -- one side: two vocabularies over a pool of ids, in any order, with '#na#' anywhere or not at all

@st.composite
def sides(draw, ids=None):
    "Names of the rows of an old and of a new table."
    pool = draw(
        st.lists(draw(st.sampled_from([ints, texts])) if ids is None else ids, min_size=1, max_size=9, unique=True)
    )

    def names():
        some = draw(st.lists(st.sampled_from(pool), max_size=8, unique=True))
        return draw(st.permutations(some + [NA]*draw(st.booleans())))
    return names(), names()

def table(names, width, dtype, seed):
    "A table whose rows differ, also in half precision."
    return torch.randn(len(names), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

@st.composite
def models(draw, dtype=dtypes):
    "The weights of a known layout and its vocabulary, today's vocabulary."
    layout, dtype, seed = draw(st.sampled_from(sorted(layouts))), draw(dtype), draw(st.integers(0, 99))
    (old_u, new_u), (old_i, new_i) = draw(sides()), draw(sides())
    prefix, wgts, by_role = draw(st.sampled_from(['', 'module.'])), {'other.weight': torch.ones(3, 3)}, {}
    for key, role in layouts[layout].items():
        names, width = (old_u, 3) if roles[role] == 'user' else (old_i, 3)
        if role not in by_role:
            by_role[role] = table(names, 1 if role.endswith('bias') else width, dtype, seed + len(by_role))
        wgts[prefix + key] = by_role[role].clone()
    return (
        wgts,
        [old_u, old_i],
        {'user': new_u, 'item': new_i},
        {prefix + k: int(roles[r] == 'item') for k, r in layouts[layout].items()},
    )


def snapshot(x):
    "A copy that shares nothing; learners and modules by their state and the place of their memory."
    if isinstance(x, torch.nn.Module):
        return {k: (v.clone(), v.device, v.data_ptr()) for k, v in x.state_dict().items()}
    if isinstance(x, torch.Tensor): return x.clone(), x.device, x.data_ptr()
    if isinstance(x, dict): return {k: snapshot(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [snapshot(o) for o in x]
    return copy.deepcopy(x)

def same(a, b):
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (pd.DataFrame, pd.Series)):
        return a.equals(b) and (a.dtypes == b.dtypes).all() if isinstance(a, pd.DataFrame) else a.equals(b)
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b

def random_states():
    return {'torch': torch.get_rng_state(), 'numpy': np.random.get_state(), 'python': random.getstate()}

class untouched:
    "Checks that arguments and the global random states are at the end what they were."
    def __init__(self, *args): self.args = args
    def __enter__(self): self.before, self.states = snapshot(self.args), random_states()
    def __exit__(self, kind, *_):
        if kind is not None: return
        assert same(self.before, snapshot(self.args)), 'an argument was changed, or moved'
        moved = [k for k, state in random_states().items() if not same(self.states[k], state)]
        assert not moved, f'the global random state of {moved} was moved'

# -- 1: a matched row is bit-equal to its old one, an unseen row is what its fill says, order never matters

def fill_by_id(u):
    "Rows that tell whose they are."
    return torch.tensor(
        [[float(hash(o) % 97)] * u.rows.shape[1] for o in u.new_ids.tolist()], dtype=torch.float64
    ).reshape(len(u.new_ids), -1)


def by_id_row(o, width, dtype): return torch.tensor([float(hash(o) % 97)]*width, dtype=torch.float64).to(dtype)

def mean_of(old, names, weights=None):
    rows = [k for k, o in enumerate(names) if o != NA]
    if not rows: return torch.zeros(old.shape[1], dtype=torch.float64)
    weights = torch.tensor(weights if weights is not None and sum(weights) else [1]*len(rows))
    return (old[rows].double()*weights.double()[:,None]).sum(0)/weights.sum()

@given_some(models(), st.booleans(), n=50)
def test_matched_rows_are_bit_equal_and_unseen_ones_as_filled(m, wrapped):
    wgts, old_vocab, new_vocab, side_of = m
    new = match_embeds({'model': wgts, 'opt': {}} if wrapped else wgts, old_vocab, new_vocab, unseen=fill_by_id)
    assert list(new) == list(wgts) and torch.equal(new['other.weight'], wgts['other.weight'])
    for key, side in side_of.items():
        old_names, names, old = old_vocab[side], list(new_vocab.values())[side], wgts[key]
        assert new[key].dtype == old.dtype and new[key].shape == (len(names), old.shape[1])
        for row, name in enumerate(names):
            if name in old_names: expected = old[old_names.index(name)]
            elif name == NA: expected = None
            else: expected = by_id_row(name, old.shape[1], old.dtype)
            if expected is not None:
                assert torch.equal(new[key][row], expected), (key, name)
            else:
                torch.testing.assert_close(
                    new[key][row].double(),
                    mean_of(old, old_names),
                    rtol=4 * torch.finfo(old.dtype).eps,
                    atol=4 * torch.finfo(old.dtype).eps,
                )


@given_some(models(), st.sampled_from(['mean', 'popular', 'normal', 'random']), st.integers(0, 99))
def test_named_fills(m, fill, seed):
    wgts, old_vocab, new_vocab, side_of = m
    counts = [
        torch.randint(
            0, 9, (len([o for o in names if o != NA]),), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        for names in old_vocab
    ]

    def run():
        return match_embeds(
            wgts,
            old_vocab,
            new_vocab,
            unseen=fill,
            counts=dict(zip(('users', 'items'), counts, strict=True)),
            seed=seed,
        )

    new, again = run(), run()
    for key, side in side_of.items():
        old_names, old = old_vocab[side], wgts[key]
        filled = new[key][[k for k, o in enumerate(list(new_vocab.values())[side]) if o not in old_names and o != NA]]
        assert torch.equal(new[key], again[key])   # the seed decides
        if fill in ('mean', 'popular') and len(filled):
            eps = torch.finfo(old.dtype).eps
            torch.testing.assert_close(
                filled.double(),
                mean_of(old, old_names, counts[side] if fill == 'popular' else None).expand(len(filled), -1),
                rtol=8 * eps,
                atol=8 * eps,
            )
            assert (filled == filled[0]).all()
        if fill == 'random': assert (filled.abs() <= .0201).all()
        assert filled.isfinite().all()

@given_some(models(), st.data())
def test_order_of_either_vocabulary_never_matters(m, d):
    wgts, old_vocab, new_vocab, side_of = m
    orders = [d.draw(st.permutations(range(len(o)))) for o in old_vocab]
    moved = {k: v[orders[side_of[k]]] if k in side_of else v for k, v in wgts.items()}
    shuffled = {k: d.draw(st.permutations(v)) for k, v in new_vocab.items()}
    a = match_embeds(wgts, old_vocab, new_vocab, unseen=fill_by_id)
    b = match_embeds(
        moved,
        [[names[k] for k in order] for names, order in zip(old_vocab, orders, strict=True)],
        shuffled,
        unseen=fill_by_id,
    )
    for key, side in side_of.items():
        names, others = list(new_vocab.values())[side], list(shuffled.values())[side]
        for row, name in enumerate(names):
            if name != NA or NA in old_vocab[side]: assert torch.equal(a[key][row], b[key][others.index(name)])

# -- 2: ids match exactly or not at all

@given_some(sides(), n=60)
def test_ids_match_as_a_dictionary_does(names):
    old, new = names
    m = match_vocab(old, new)
    place = {o: k for k, o in enumerate(old)}
    assert m.rows.tolist() == [place.get(o, -1) for o in new]
    real = [[o for o in v if o != NA] for v in (old, new)]
    assert (
        set(m.matched) == set(real[0]) & set(real[1])
        and set(m.new) == set(real[1]) - set(real[0])
        and set(m.dropped) == set(real[0]) - set(real[1])
    )


@given_some(st.lists(st.integers(-2**40, 2**40), min_size=1, max_size=6, unique=True))
def test_numbers_and_their_text_are_different_ids(ids):
    as_text = [str(o) for o in ids]
    assert (match_vocab(ids, as_text).rows == -1).all() and (match_vocab(as_text, ids).rows == -1).all()
    assert (Vocab(ids).rows(as_text) == -1).all() and (Vocab(as_text).rows(ids) == -1).all()

@given_some(st.lists(st.integers(0, 2**31-1), min_size=1, max_size=6, unique=True), st.sampled_from(
    ['int32', 'uint32', 'int64', 'uint64', 'float64', 'Int64', 'category', 'list', 'int64[pyarrow]']))
def test_the_container_of_ids_never_matters(ids, form):
    given_ids = ids if form == 'list' else pd.Series(ids).astype(form)
    assert Vocab([NA, *ids]).rows(given_ids).tolist() == list(range(1, len(ids)+1))

@given_some(st.integers(2**53, 2**62) | st.integers(2**24, 2**30), st.sampled_from([np.float64, np.float32]))
def test_ids_that_a_cast_may_have_rounded_are_refused(o, dtype):
    assume(dtype == np.float32 or o >= 2**53)
    with pytest.raises(RatingsError, match='may have been rounded'): canonical_ids(np.array([o, 1], dtype=dtype))

# -- 3: '#na#' is row 0, matches '#na#' only, and is no part of a mean

@given_some(models(st.sampled_from([torch.float32, torch.float64])), st.sampled_from(['mean', 'normal', 'popular']))
def test_na_is_part_of_no_fill(m, fill):
    wgts, old_vocab, new_vocab, side_of = m
    counts = {
        side: [1] * len([o for o in names if o != NA])
        for side, names in zip(('users', 'items'), old_vocab, strict=True)
    }
    loud = {k: v.clone() for k, v in wgts.items()}
    for key, side in side_of.items():
        if NA in old_vocab[side]: loud[key][old_vocab[side].index(NA)] = 1e30
    a, b = (match_embeds(w, old_vocab, new_vocab, unseen=fill, counts=counts, seed=1) for w in (wgts, loud))
    for key, side in side_of.items():
        for row, name in enumerate(list(new_vocab.values())[side]):
            if name == NA and NA in old_vocab[side]: assert (b[key][row] == 1e30).all()
            else: assert torch.equal(a[key][row], b[key][row])

@given_some(sides())
def test_na_matches_na_only(names):
    old, new = names
    m = match_vocab(old, new)
    for row, name in zip(m.rows, new, strict=True):
        if row >= 0: assert (name == NA) == (old[row] == NA)
    assert NA not in [*m.matched, *m.new, *m.dropped]

# -- learners: two random tables of ratings, and a model of the first

@st.composite
def nights(draw):
    "Ratings of two nights over ids of one kind, and the seed of what is drawn."
    rng, text = np.random.default_rng(draw(st.integers(0, 999))), draw(st.booleans())

    def night(low, n):
        return pd.DataFrame(
            {
                'user': rng.integers(low, low + 12, n),
                'item': rng.integers(low, low + 9, n),
                'rating': rng.integers(1, 6, n).astype(float),
            }
        )

    res = [night(0, draw(st.integers(20, 60))), night(draw(st.integers(0, 6)), draw(st.integers(20, 60)))]
    return [df.assign(user='u' + df.user.astype(str), item='i' + df['item'].astype(str)) for df in res] if text else res

def make(df, use_nn=False, path='.', **kwargs):
    dls = CollabDataLoaders.from_df(df, seed=1, bs=16, path=path, device='cpu')
    return collab_learner(
        dls,
        n_factors=3,
        use_nn=use_nn,
        y_range=(0, 5.5),
        **({'layers': [4], 'emb_szs': [3, 2]} if use_nn else {}),
        **kwargs,
    )


def side_key(key): return key[0] == 'i' or key.startswith('embeds.1')
def tables_of(learn):
    return {
        k: v
        for k, v in learn.model.state_dict().items()
        if k[:7] in ('u_weigh', 'i_weigh', 'u_bias.', 'i_bias.', 'embeds.')
    }


@given_some(nights(), st.booleans(), n=12)
def test_a_saved_model_starts_another_night(tmp_path_factory, dfs, use_nn):
    path = tmp_path_factory.mktemp('m')
    old = make(dfs[0], use_nn, path)
    quiet(old, 'fit', 1, 1e-2)
    old.save('night')
    for start in ('night', old, old.save_pretrained('folder')):
        new = make(dfs[1].sample(frac=1, random_state=0), use_nn, path, pretrained=start)
        for key, t in tables_of(new).items():
            names, old_names = (list(list(o.vocab.values())[side_key(key)]) for o in (new, old))
            before = old.model.state_dict()[key]
            assert names[0] == NA == old_names[0] and torch.equal(t[0], before[0])
            for row, name in enumerate(names):
                if name in old_names: assert torch.equal(t[row], before[old_names.index(name)])
                else: torch.testing.assert_close(t[row], mean_of(before, old_names).float())

# -- 4: no function changes an argument, moves a layer, or touches the global random state unseen

@given_some(models(st.just(torch.float32)), st.sampled_from(['mean', 'normal', 'random']), st.sampled_from([None, 3]))
def test_functions_of_weights_leave_their_arguments_alone(m, fill, seed):
    wgts, old_vocab, new_vocab, side_of = m
    with untouched(wgts, old_vocab, new_vocab):
        new = match_embeds(wgts, old_vocab, new_vocab, unseen=fill, seed=seed)
        for k in side_of: new[k].add_(1)   # what came out is the caller's
        match_classes(old_vocab, new_vocab), Vocab(old_vocab[0]).rows(Vocab(new_vocab['user']))

@given_some(nights(), st.booleans(), n=8)
def test_learners_leave_arguments_and_random_states_alone(tmp_path_factory, dfs, use_nn):
    path, config = tmp_path_factory.mktemp('m'), {'ps': .1, 'use_bn': False}
    old = make(dfs[0], use_nn, path)
    quiet(old, 'fit', 1, 1e-2)
    with untouched(*dfs): CollabDataLoaders.from_df(dfs[1], device='cpu')
    args = (dfs, config, old.model, old.opt.state_dict()['state'])
    new = make(dfs[1], use_nn, path, pretrained=old, **({'config': config} if use_nn else {}))
    known, item = dfs[0].user.iloc[0], dfs[0]['item'].iloc[0]
    with untouched(*args): make_nothing_of(old, dfs, known, item, path, use_nn)
    with untouched(dfs, old.model): new.load_vocab(old.save('x'), path/'models'/'x_vocab.pkl', unseen='random')
    with untouched(dfs, old.model):
        if not use_nn:
            new.adapt()
            new.align(old)
            new.fold_in(dfs[0], ids='all', commit=True)
        new.freeze_rows([dfs[1].user.iloc[0]], 'user')
        new.unfreeze_rows()
        new.drop_ids(items=[dfs[1]['item'].iloc[0]]) if dfs[1]['item'].nunique() > 2 else None

def make_nothing_of(learn, dfs, user, item, path, use_nn):
    "Everything that only reads. (Whoever makes a model draws its first weights, as torch does.)"
    learn.save('y')
    learn.save_pretrained('y')
    learn.load('y')
    for name in ('vocab', 'match_report'): getattr(learn, name)
    quiet(learn, 'predict', {'user': user, 'item': item})
    quiet(learn, 'get_preds')
    quiet(learn, 'validate')
    quiet(learn, 'evaluate', dfs[0])
    learn.recommend([user], k=2)
    if use_nn: return
    learn.similar_items([item], k=2)
    learn.similar_users([user], k=2)
    learn.model.weight([item])
    learn.model.bias([user], is_item=False)
    learn.fold_in(dfs[1], ids='all', side='user')

# -- 7: frozen rows are bit-equal before and after training

OPTIMIZERS = [
    None,
    None,
    Adam,
    RMSProp,
    ranger,
    partial(SGD, mom=0.9),
    partial(OptimWrapper, opt=partial(torch.optim.AdamW)),
    partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
]


@given_some(nights(), st.booleans(), st.sampled_from(OPTIMIZERS), st.data(), n=18)
def test_frozen_rows_stay(dfs, use_nn, opt, d):
    learn = make(dfs[0], use_nn, **({'sparse': d.draw(st.booleans())} if opt is None else {'opt_func': opt}))
    was_fit = d.draw(st.booleans())
    if was_fit: quiet(learn, 'fit', 1, 1e-2, wd=.1)   # so that there are moments
    kept = {}
    for side, vocab in zip(('user', 'item'), learn.vocab.values(), strict=True):
        ids = d.draw(st.lists(st.sampled_from(vocab.ids.tolist()), max_size=5, unique=True))
        learn.freeze_rows(ids, side)
        kept[side] = ids

    def rows():
        return {
            (k, o): t[list(learn.vocab.values())[side_key(k)].rows([o])[0]].clone()
            for k, t in tables_of(learn).items()
            for o in kept[('user', 'item')[side_key(k)]]
        }

    before, whole = rows(), {k: v.clone() for k, v in learn.model.state_dict().items()}
    ways = {
        'fit': (1, 1e-2),
        'fit_one_cycle': (1, slice(1e-3, 1e-2)),
        'fine_tune': (1, 1e-2),
        'update': (dfs[1],),
        **({} if use_nn else {'adapt': ()}),
    }
    if not was_fit: ways = {k: v for k, v in ways.items() if k.startswith('fi')}  # the others want trained rows
    asked = d.draw(st.lists(st.sampled_from(sorted(ways)), min_size=1, max_size=2))
    for what in asked:
        quiet(
            learn,
            what,
            *ways[what],
            **(
                {'wd': d.draw(st.sampled_from([0.0, 0.4]))}
                if what.startswith('fi')
                else {'epochs': 1}
                if what == 'update'
                else {}
            ),
        )
    after = rows()
    for k in before: assert torch.equal(before[k], after[k]), k
    if was_fit and set(asked) == {'adapt'}: return  # every rating was taken in before
    assert any(
        v.shape != whole[k].shape or not torch.equal(v, whole[k]) for k, v in learn.model.state_dict().items()
    )  # and the others trained


# -- 8: what can't be done names the id, key, column or shape, what was expected, and the remedy

def refuses(kind, call, *said):
    "`call` raises an error of this library that says what was found and what was expected."
    with pytest.raises(kind) as e: call()
    for o in ('expected', *said): assert str(o) in str(e.value), f'{o!r} is not in: {e.value}'

@given_some(sides(), st.data())
def test_errors_of_vocabularies_name_the_id(names, d):
    some = [o for o in names[0] if o != NA]
    assume(some)
    twice = d.draw(st.sampled_from(some))
    refuses(VocabError, lambda: Vocab([*some, twice]), repr(twice), 'more than once')
    refuses(VocabError, lambda: Vocab([NA, *some, NA]), repr(NA))
    refuses(VocabError, lambda: match_classes([some, some, some], [some, some]), 'users first')
    other = 'x' if isinstance(some[0], int) else 5
    refuses((VocabError, RatingsError), lambda: Vocab([*some, other]), repr(other))

@given_some(models(), st.data())
def test_errors_of_weights_name_key_and_shape(m, d):
    wgts, old_vocab, new_vocab, side_of = m
    key = d.draw(st.sampled_from(sorted(side_of)))
    longer = [
        [*o, 10**6 if all(isinstance(x, int) for x in o if x != NA) else 'one more'] if side == side_of[key] else o
        for side, o in enumerate(old_vocab)
    ]
    of_side = [k for k, side in side_of.items() if side == side_of[key]]
    refuses(
        VocabError,
        lambda: match_embeds(wgts, longer, new_vocab),
        of_side[0],
        tuple(wgts[of_side[0]].shape),
        len(longer[side_of[key]]),
        'vocabulary',
    )
    refuses(WeightsError, lambda: match_embeds({'nothing': torch.ones(2)}, old_vocab, new_vocab), 'nothing', '`keys=`')
    refuses(WeightsError, lambda: match_embeds(wgts, old_vocab, new_vocab, keys={'u_weight': 'nope'}), 'nope')
    refuses(VocabError, lambda: match_embeds(wgts, old_vocab, new_vocab, unseen='zeros'), 'zeros', 'mean')
    refuses(VocabError, lambda: match_embeds(wgts, old_vocab, new_vocab, counts={'users': [1]*77}), 77)

@given_some(nights(), n=8)
def test_errors_of_learners_name_the_id(tmp_path_factory, dfs):
    path = tmp_path_factory.mktemp('m')
    learn = make(dfs[0], path=path)
    stranger = 'nobody' if isinstance(dfs[0].user.iloc[0], str) else 10**9
    known = dfs[0].user.iloc[0]
    for call in (
        lambda: learn.freeze_rows([known, stranger], 'user'),
        lambda: learn.drop_ids(users=[stranger]),
        lambda: learn.recommend([stranger]),
        lambda: learn.similar_users([stranger]),
        lambda: learn.model.weight([stranger], is_item=False),
        lambda: learn.fold_in(dfs[0], ids=[stranger]),
    ):
        refuses(CollabError, call, repr(stranger))
    learn.save('x')
    refuses(
        WeightsError,
        lambda: collab_learner(learn.dls, n_factors=5, y_range=(0, 5.5), pretrained='x'),
        'u_weight',
        'n_factors=3',
    )
    refuses(
        WeightsError,
        lambda: collab_learner(learn.dls, n_factors=3, y_range=(0, 9), pretrained='x'),
        '(0.0, 9.0)',
        '(0.0, 5.5)',
    )
    refuses(CheckpointNotFoundError, lambda: make(dfs[0], path=path, pretrained='y'), "'y'", path)
    refuses(
        VocabError,
        lambda: make(
            dfs[1].assign(user='z' + dfs[1].user.astype(str), item='z' + dfs[1]['item'].astype(str)), path=path
        ).load('x'),
        'x.pth',
        'pretrained=',
    )
    other = make(dfs[1].assign(user='z' + dfs[1].user.astype(str), item='z' + dfs[1]['item'].astype(str)), path=path)
    refuses(VocabError, lambda: other.load_vocab('x.pth', 'x_vocab.pkl'), 'no user matched', 'no item matched')

@given_some(nights(), st.sampled_from(['user', 'item', 'rating']), st.data(), n=20)
def test_errors_of_tables_name_column_and_place(dfs, col, d):
    df = dfs[0].astype({col: object})
    place = d.draw(st.integers(0, len(df)-1))
    df.loc[place, col] = None
    refuses(RatingsError, lambda: CollabDataLoaders.from_df(df), col, place)
    with pytest.raises(
        RatingsError, match="no column 'usr'; the columns are 'user', 'item', 'rating': name the user column"
    ):
        CollabDataLoaders.from_df(dfs[0], user_name='usr')
