"""Random sequences of all that changes a learner, against a plain dictionary from id to row.

The machine keeps what should be known of each id (its row, its moments, its ratings) and compares after every step.
Of whoever was dropped no file that is written afterwards may hold a trace: not the id, and no row that it ever had.
A new kind of state (a posterior, lists of what users have seen) is one more function in `PER_ID`.
"""
import json
import shutil
import struct
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import load_learner
from fastai.torch_core import get_model
from helpers import quiet
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from collab_pretrained.all import CollabDataLoaders, CollabError, CollabLearner, collab_learner
from collab_pretrained.core import side_index
from collab_pretrained.learner.core import interaction_counts
from collab_pretrained.learner.posterior import is_solved_by_rows
from collab_pretrained.weights.moments import param_names, read_moments
from collab_pretrained.weights.roles import find_roles, flat_weights, roles

SIDES = 'user', 'item'

# -- ids of several kinds: each distinct enough to be searched for in the bytes of a file

KINDS = {
    'int': lambda n: (0x5A17_93C4_2E00 + 257 * n) * (-1) ** n,
    'text': lambda n: f'id~{n:04}~',
    'odd': lambda n: [f' {n:04}~', f'É\u0301{n:04}', f'"{n:04}\\', f"{n:04}\n'", f'#NA#{n:04}', f'\U0001f3ac{n:04}'][
        n % 6
    ],
}


def encodings(value):
    "How an id may stand in a file."
    if isinstance(value, str): return {value.encode(), json.dumps(value)[1:-1].encode(), value.encode('utf-16-le')}
    n_bytes = (value.bit_length() + 8)//8  # as pickle writes it; an array holds it as well, with more bytes behind
    return {str(value).encode(), value.to_bytes(n_bytes, 'little', signed=True), struct.pack('<d', float(value))}


# -- what a learner knows of each id

def rows_of(learn):
    "(side, id) -> its vector and what else the model has of it, in one tensor."
    tables, res = {side: [] for side in SIDES}, {}
    params = dict(get_model(learn.model).named_parameters())
    for role, names in sorted(find_roles(params).items(), reverse=True):
        tables[roles[role]] += [params[o].detach() for o in names]
    for side in SIDES:
        vocab, whole = learn.side(side).vocab, torch.cat(tables[side], 1).clone()
        assert len(vocab) == len(whole) and vocab.na_row == 0
        res.update({(side, i): whole[row] for i, row in zip(vocab.ids.tolist(), vocab.id_rows.tolist(), strict=True)})
    return res


def derived_of(learn):
    "The (side, id) whose rows follow those of others: what a solved ranking has no positive of."
    if learn.ranking is None or not is_solved_by_rows(learn): return set()
    n_positives = learn.posterior.user_counts, learn.posterior.item_counts
    vocabs = [(side, learn.side(side).vocab, n) for side, n in zip(SIDES, n_positives, strict=True)]
    return {(side, i) for side, v, n in vocabs for i, row in zip(v.ids.tolist(), v.id_rows, strict=True) if not n[row]}


def moments_of(learn):
    "(side, id) -> what the optimizer remembers of it; none without an optimizer."
    res, model = {}, get_model(learn.model)
    if learn.opt is None: return res
    state = read_moments(learn.opt.state_dict(), param_names(learn.opt, model)).of
    for role, (name, *_) in sorted(find_roles(dict(model.named_parameters())).items()):
        vocab = learn.side(roles[role]).vocab
        for _, x in sorted((k, v) for k, v in state[name].items() if isinstance(v, torch.Tensor) and len(v.shape) > 1):
            for i, row in zip(vocab.ids.tolist(), vocab.id_rows.tolist(), strict=True):
                res.setdefault((roles[role], i), []).append(x[row].clone().float())
    return {k: torch.cat([o.flatten() for o in v]) for k, v in res.items()}


def counts_of(learn):
    "(side, id) -> how often it was trained."
    counts = interaction_counts(learn.dls)
    return {(side, i): torch.tensor(n) for side in SIDES
            for i, n in zip(learn.side(side).vocab.ids.tolist(), counts[f'{side}s'], strict=True)}


PER_ID = {'rows': rows_of, 'moments': moments_of, 'counts': counts_of}


def ratings_of(learn):
    "How often each (user, item, rating) is there, in the training and the validation part."
    res, names = Counter(), [np.array([*o, None], dtype=object) for o in learn.vocab.values()]
    for dl in learn.dls.loaders[:2]:
        x, y = dl.dataset.tensors[:2]
        res.update(
            zip(*(v[o.numpy()].tolist() for v, o in zip(names, x.T, strict=True)), y.flatten().tolist(), strict=True)
        )
    return res


def state_of(learn):
    return {k: f(learn) for k, f in PER_ID.items()} | {'ratings': ratings_of(learn), 'derived': derived_of(learn)}


def differences(old, new, names=('rows', 'moments', 'counts'), without=frozenset()):
    "The (what, side, id) of which `new` knows other things than `old`; ids in `without` should be in none."
    res, derived = [], old['derived'] | new.get('derived', set())
    for name in names:
        follows = derived if name == 'rows' else set()
        expected = {k: v for k, v in old[name].items() if k not in without and k not in follows}
        odd = [k for k in expected if k not in new[name] or not torch.equal(expected[k], new[name][k])]
        res += [(name, *k) for k in odd] + [(name, *k) for k in new[name] if k in without]
    return res


# -- the machine

class Stop(Callback):
    "Ends a training at its n-th batch, with an exception of the kind given."
    order = 80
    def __init__(self, n, error): self.n, self.error = n, error
    def after_batch(self):
        if not self.learn.training: return
        self.n -= 1
        if self.n < 0: raise self.error


class LearnerMachine(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(sorted(KINDS)),
                loss=st.sampled_from([None, None, 'ials', 'bpr', 'warp', 'softmax']),
                use_nn=st.booleans(), sparse=st.booleans(), seed=st.integers(0, 999))
    def start(self, kind, loss, use_nn, sparse, seed):
        self.folder, self.files = Path(tempfile.mkdtemp()), {}
        self.rng, self.make_id, self.n_ids = np.random.default_rng(seed), KINDS[kind], {'user': 0, 'item': 1000}
        self.ids = {side: [] for side in SIDES}  # those that were made and not dropped
        self.gone, self.ever, self.frozen, self.saved = set(), {}, set(), {}
        use_nn = use_nn and loss not in ('ials', 'softmax')  # which need a dot product
        self.how = dict(n_factors=3, use_nn=use_nn, y_range=None if loss else (0, 5.5), loss=loss, sparse=sparse)
        self.new_learner(self.table(30, new=8), pretrained=False)

    def teardown(self):
        if hasattr(self, 'folder'): shutil.rmtree(self.folder)

    # what rules are made of

    def new_ids(self, side, n):
        start, self.n_ids[side] = self.n_ids[side], self.n_ids[side] + n
        self.ids[side] += (new := [self.make_id(o) for o in range(start, start + n)])
        return new

    def table(self, n_rows, new=0, no=frozenset()):
        "Ratings of known ids, none of them in `no`, and of `new` others."
        ids = [[*(o for o in self.ids[side] if (side, o) not in no), *self.new_ids(side, new)] for side in SIDES]
        columns = {side: pd.Series([own[k] for k in self.rng.integers(0, len(own), n_rows)], dtype=type(own[0]))
                   for side, own in zip(SIDES, ids, strict=True)}
        return (
            pd.DataFrame(columns)
            .assign(rating=self.rng.integers(1, 6, n_rows).astype('float32'))
            .drop_duplicates(list(SIDES))
        )

    def new_learner(self, df, pretrained, **kwargs):
        dls = CollabDataLoaders.from_df(df, valid_pct=.2, seed=int(self.rng.integers(999)), bs=8, path=self.folder)
        self.learn = collab_learner(dls, pretrained=pretrained, **self.how, **kwargs)
        self.learn.drawn = None  # random rows stand for trained ones
        if self.how['loss'] == 'ials' and not pretrained: quiet(self.learn, 'fit_als', 1)  # or they are descent's
        self.frozen = set()
        self.look(df)

    def look(self, df=None):
        "Take what the learner knows as the truth; every row that anyone ever had is remembered."
        if df is not None: self.ratings = Counter(df.itertuples(index=False, name=None))
        self.truth = state_of(self.learn)
        assert self.truth['ratings'] == self.ratings
        for key, row in self.truth['rows'].items():
            if row[:3].any(): self.ever.setdefault(key, set()).add(row[:3].numpy().tobytes())

    def trained(self):
        "After rows may have changed: frozen ones have not, and ids and ratings are the same."
        before, after = self.truth['rows'], rows_of(self.learn)
        assert not [o for o in self.frozen if not torch.equal(before[o], after[o])]
        assert set(before) <= set(after)
        self.look()

    def unchanged(self, *names, without=frozenset()):
        "After what changes nothing of these."
        now = state_of(self.learn)
        assert not differences(self.truth, now, names or ('rows', 'moments', 'counts'), without)
        self.look()

    def search(self, path):
        "No file at `path` tells of anyone who was dropped."
        live = {row[:3].numpy().tobytes() for row in rows_of(self.learn).values()}
        live |= {
            t[0][:3].numpy().tobytes()
            for t in flat_weights(get_model(self.learn.model).state_dict()).values()
            if t.dim() == 2
        }
        shared = Counter(o for rows in self.ever.values() for o in rows)
        files = [o for o in ([path] if path.is_file() else path.rglob('*')) if o.is_file()]
        assert '_vocab' in path.name or any(o in file.read_bytes() for o in live for file in files)  # they can be found
        for content in (o.read_bytes() for o in files):
            for key in self.gone:
                for o in encodings(key[1]): assert o not in content, (path.name, *key)
                for o in self.ever.get(key, ()):
                    assert shared[o] > 1 or o in live or o not in content, (path.name, 'a row of', *key)

    def pick(self, side, share):
        ids = self.learn.side(side).vocab.ids.tolist()
        return [ids[k] for k in range(len(ids)) if share > self.rng.random()]

    def has_positives(self):
        ratings = self.learn.dls.train_ds.tensors[1]
        least = 1 if self.learn.ranking is None else self.learn.ranking.threshold(ratings) or 1
        return bool((ratings >= least).any())

    def is_solved(self): return is_solved_by_rows(self.learn)

    # training

    @rule(epochs=st.integers(1, 2))
    def fit(self, epochs):
        try: quiet(self.learn, 'fit', epochs, .1, wd=.01)
        except ValueError as e: assert 'more than 1 value' in str(e)  # batch normalization of a batch of one pair
        self.trained()

    @rule(n=st.integers(0, 4), error=st.sampled_from([KeyboardInterrupt, CancelFitException, RuntimeError]))
    def interrupted_fit(self, n, error):
        try: quiet(self.learn, 'fit', 2, .1, cbs=[Stop(n, error('stopped'))])
        except (KeyboardInterrupt, RuntimeError, ValueError): pass
        self.trained()

    @rule(rounds=st.integers(1, 2))
    def fit_als(self, rounds):
        can = not self.how['use_nn'] and self.how['loss'] in (None, 'ials') and self.has_positives()
        if not can: return self.refused(self.learn.fit_als, rounds)
        quiet(self.learn, 'fit_als', rounds)
        self.trained()

    @precondition(lambda self: len(self.learn.dls.train_ds))
    @rule()
    def adapt(self):
        if not self.is_solved(): return self.refused(self.learn.adapt)  # trained by descent
        quiet(self.learn, 'adapt')
        self.trained()

    @rule(side=st.sampled_from(SIDES), share=st.floats(.1, .6))
    def freeze(self, side, share):
        if not (ids := self.pick(side, share)): return
        self.learn.freeze_rows(ids, side)
        self.frozen |= {(side, o) for o in ids}
        self.unchanged()

    @rule()
    def unfreeze(self):
        self.learn.unfreeze_rows()
        self.frozen = set()
        self.unchanged()

    # ids that come and go

    def epochs_of_update(self): return int(not self.is_solved())

    def known_pairs(self):
        "The (user, item) that the learner holds a rating of, and all that the model has learned from."
        held, evidence = {(u, i) for u, i, _ in self.ratings}, self.learn.evidence()
        names = [np.array([*o, None], dtype=object) for o in self.learn.vocab.values()]
        rows = np.zeros((0, 2), dtype=np.int64) if evidence is None else np.asarray(evidence.pairs())
        return held, held | set(zip(*(v[o].tolist() for v, o in zip(names, rows.T, strict=True)), strict=True))

    def takes_in(self, df, known):
        "A pair that is held gets its new rating, one that only the model knows stays out, any other comes in."
        held, learned = known
        for user, item, rating in df.itertuples(index=False, name=None):
            if (user, item) in held:
                (old, n), = [(o, n) for o, n in self.ratings.items() if o[:2] == (user, item)]
                del self.ratings[old]
                self.ratings[user, item, rating] = n
            elif (user, item) not in learned: self.ratings[user, item, rating] += 1
        self.trained()

    @rule(new=st.integers(0, 3), seed=st.integers(0, 99))
    def update(self, new, seed):
        df, known = self.table(8, new), self.known_pairs()
        quiet(self.learn, 'update', df, epochs=self.epochs_of_update(), seed=seed)
        self.takes_in(df, known)

    @rule(new=st.integers(1, 3))
    def interrupted_update(self, new):
        ids, n_ids, known = {k: list(v) for k, v in self.ids.items()}, dict(self.n_ids), self.known_pairs()
        df = self.table(8, new)
        self.learn.add_cb(stop := Stop(0, KeyboardInterrupt()))
        try: quiet(self.learn, 'update', df, epochs=1)
        except KeyboardInterrupt:
            self.ids, self.n_ids = ids, n_ids
            self.learn.remove_cb(stop)
            return self.unchanged('rows', 'counts')
        self.learn.remove_cb(stop)
        self.takes_in(df, known)

    @rule(side=st.sampled_from(SIDES), share=st.floats(.1, .3))
    def drop(self, side, share):
        ids = self.pick(side, share)
        if not ids or len(self.learn.side(side).vocab.ids) - len(ids) < 3: return
        gone = {(side, o) for o in ids}
        kept = Counter({k: n for k, n in self.ratings.items() if k[side_index(side)] not in ids})
        dropped = self.learn.drop_ids(**{f'{side}s': ids})
        assert dropped.ratings == self.ratings.total() - kept.total() and getattr(dropped, f'{side}s') == len(ids)
        self.ratings, self.frozen, self.gone = kept, self.frozen - gone, self.gone | gone
        self.ids[side] = [o for o in self.ids[side] if o not in ids]
        self.unchanged('rows', 'moments', without=gone)

    @rule(side=st.sampled_from(SIDES), commit=st.booleans())
    def fold_in(self, side, commit):
        if self.how['use_nn']: return self.refused(self.learn.fold_in, self.table(5), side)
        df, other = self.table(8), SIDES[1 - side_index(side)]
        known = set(self.learn.side(other).vocab.ids.tolist())
        df = df[df[other].isin(known)]
        if df.empty: return
        df[side] = pd.Series(
            [*(new := self.new_ids(side, 2)), *[new[0]] * 6][: len(df)], index=df.index, dtype=type(new[0])
        )
        df = df.drop_duplicates(list(SIDES))
        found = self.learn.fold_in(df, side, commit=commit)
        assert sorted(found.ids.tolist()) == sorted(set(df[side]))
        if commit:
            now = rows_of(self.learn)
            assert set(now) - set(self.truth['rows']) == {(side, o) for o in df[side]}
        self.unchanged('rows', 'counts')

    # files

    @rule(name=st.sampled_from(['a', 'b/c']), with_opt=st.booleans())
    def save(self, name, with_opt):
        path = self.learn.save(name, with_opt=with_opt)
        self.saved[name] = {
            **self.truth,
            'vocab': {k: list(v) for k, v in self.learn.vocab.items()},
            'opt': with_opt and self.learn.opt,
        }
        self.search(path)
        self.search(path.with_name(f'{path.stem}_vocab.pkl'))
        self.unchanged()

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def load(self, data):
        name = data.draw(st.sampled_from(sorted(self.saved)))
        saved = self.saved[name]
        if saved['vocab'] != {k: list(v) for k, v in self.learn.vocab.items()}:
            return self.refused(self.learn.load, name)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.learn.load(name)
        assert not differences(saved, state_of(self.learn), ('rows', 'moments') if saved['opt'] else ('rows',))
        self.look()

    @rule(source=st.sampled_from(['learner', 'pair', 'folder']), with_opt=st.booleans(), new=st.integers(0, 3))
    def warm_start(self, source, with_opt, new):
        "Start the next learner from this one, over another table."
        if source == 'pair': self.save('tonight', True)
        if source == 'folder': self.save_pretrained()
        with_opt = with_opt and source != 'folder' and self.learn.opt is not None
        old, had = self.truth, {side: self.learn.side(side).vocab.ids.tolist() for side in SIDES}
        pretrained = {'learner': self.learn, 'pair': 'tonight', 'folder': self.folder/'folder'}[source]
        self.new_learner(self.table(30, new), pretrained, with_opt=with_opt)
        for name in ('rows', 'moments') if with_opt else ('rows',):
            for k, v in self.truth[name].items(): assert k not in old[name] or torch.equal(v, old[name][k]), (name, *k)
        for side in SIDES:
            mean = torch.stack([old['rows'][side, o] for o in had[side]]).double().mean(0)
            strangers = [v for k, v in self.truth['rows'].items() if k[0] == side and k not in old['rows']]
            for o in strangers: torch.testing.assert_close(o.double(), mean, rtol=1e-4, atol=1e-5)

    @rule()
    def save_pretrained(self):
        self.search(self.learn.save_pretrained('folder'))
        self.unchanged()

    @rule(stay=st.booleans())
    def from_pretrained(self, stay):
        self.save_pretrained()
        learn = CollabLearner.from_pretrained(self.folder/'folder', path=self.folder)
        assert not differences(self.truth, state_of(learn), ('rows', 'counts'))
        if not stay: return
        self.learn, self.frozen, self.ratings = learn, set(), Counter()
        self.look()

    @rule()
    def export(self):
        self.learn.export('export.pkl')
        self.search(self.folder/'export.pkl')
        again = load_learner(self.folder/'export.pkl')
        assert not differences(self.truth, {'rows': rows_of(again)}, ('rows',))
        self.unchanged()

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def align(self, data):
        name = data.draw(st.sampled_from(sorted(self.saved)))
        if self.how['use_nn']: return self.refused(self.learn.align, name)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: turned = self.learn.align(name)
            except CollabError as e: assert 'no id in common' in str(e)
            else: assert [list(v) for v in turned.vocab.values()] == list(self.saved[name]['vocab'].values())
        self.unchanged()

    # what only reads, and mistakes

    @rule(k=st.integers(1, 3))
    def recommend(self, k):
        users = self.learn.side('user').vocab.ids.tolist()
        if not len(self.learn.dls.train_ds) and self.learn.seen is None:
            return self.refused(self.learn.recommend, users, k=k)
        found = self.learn.recommend(users, k=k)
        items, seen = set(self.learn.side('item').vocab.ids.tolist()), {(u, i) for u, i, _ in self.ratings}
        assert set(found['item']) <= items and not set(zip(found['user'], found['item'], strict=True)) & seen
        self.unchanged()

    @rule(name=st.sampled_from(['validate', 'get_preds', 'predict']))
    def predict(self, name):
        if not len(self.learn.dls.valid_ds): return
        pair = {side: self.learn.side(side).vocab.ids.tolist()[0] for side in SIDES}
        quiet(self.learn, name, *[pair]*(name == 'predict'))
        self.unchanged()

    def refused(self, call, *args, **kwargs):
        "A mistake: one of our errors, and nothing has changed."
        with pytest.raises(CollabError): call(*args, **kwargs)
        self.unchanged()

    @rule(side=st.sampled_from(SIDES), which=st.integers(0, 6))
    def mistake(self, side, which):
        never, df = self.make_id(9_999), self.table(5)
        self.refused(*[
            (self.learn.drop_ids, [never]),
            (self.learn.freeze_rows, [never], side),
            (self.learn.load, 'no_such_file'),
            (self.learn.update, df.drop(columns=side)),
            (self.learn.update, df.assign(rating=float('nan'))),
            (self.learn.fold_in, df.drop(columns=side)),
            (self.learn.recommend, [never]),
        ][which])

    @invariant()
    def ids_are_known(self):
        if hasattr(self, 'learn'): assert not {k for k in rows_of(self.learn) if k in self.gone}


@pytest.mark.filterwarnings('ignore::collab_pretrained.core.CollabWarning')
def test_learners_in_any_order(request):
    nightly = request.config.getoption('nightly')
    run_state_machine_as_test(LearnerMachine, settings=settings(
        max_examples=600 if nightly else 60, stateful_step_count=30 if nightly else 15, deadline=None,
        derandomize=not nightly))  # so that a change is judged by itself, and not by the luck of a run
