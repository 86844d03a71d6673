"Tables that a nightly job must not take in: each is refused in words that name what is the matter."
import json

import numpy as np
import pandas as pd
import pytest
from helpers import quiet
from hypothesis import given
from hypothesis import strategies as st

from collab_pretrained.core import RatingsError, planted_ratings
from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.data.ratings import read_ratings
from collab_pretrained.learner.factory import collab_learner
from collab_pretrained.serve.checks import check_table, table_profile

NOW, SIZE, FIRST = 1_800_000_000, 600, 20_000


def read(df): return read_ratings(df, 'user', 'item', 'rating', time_name='time')


@pytest.fixture(scope='module')
def chain():
    "A model after six nights, their profiles, all ratings, and tonight's. Item ids are text with leading zeros."
    df = planted_ratings(1500, 400, 30_000, noise=.3, changed=0.)[['user', 'item', 'rating']]
    df = df.drop_duplicates(['user', 'item']).sample(frac=1, random_state=0).reset_index(drop=True)
    df['item'] = (2*df['item'] + 600).map('{:05d}'.format)  # every other number is free
    df['time'] = NOW - 3600 + 144*(np.arange(len(df)) - FIRST - 7*SIZE)
    learn, earlier = collab_learner(CollabDataLoaders.from_df(df[:FIRST], valid_pct=0., seed=0)), []
    quiet(learn, 'fit_als', 5)
    for k in range(FIRST, FIRST + 6*SIZE, SIZE):
        earlier.append(table_profile(learn, read(df[k:k + SIZE]), earlier, now=df.time[k + SIZE]))
        with learn.no_bar(): learn.update(df[k:k + SIZE])
    return learn, earlier, df, df[k + SIZE:k + 2*SIZE]


def checks(chain, table, limits=None):
    learn, earlier, *_ = chain
    profile = table_profile(learn, read(table), earlier, now=NOW)
    assert json.loads(json.dumps(profile)) == profile
    return check_table(profile, earlier, limits)


def refused(chain, table): return {o.name: str(o) for o in checks(chain, table) if not o.ok}


def test_good_nights_pass(chain):
    _, _, df, tonight = chain
    assert not refused(chain, tonight)
    end = tonight.index[-1] + 1
    assert not refused(chain, df[end:end + SIZE].assign(time=tonight.time.to_numpy()))


def test_only_what_is_new_is_judged(chain):
    "A day doubled, every rating sent twice, and the whole table do no harm, and the report says what they are."
    _, _, df, tonight = chain
    cases = ((pd.concat([tonight, tonight]), 'equal rows', '50.0% of the rows repeat'),
             (df[:tonight.index[-1] + 1], 'known pairs', '97.5% of the'))
    for table, name, seen in cases:
        found = {o.name: o for o in checks(chain, table)}
        assert all(o.ok for o in found.values()) and seen in found[name].seen
        assert found['new ratings'].seen.startswith(f'{SIZE} of ')


def shift(df, **steps):
    ids = {k: (df[k].astype(int) + step).map('{:05d}'.format if k == 'item' else int) for k, step in steps.items()}
    return df.assign(**ids)


def bot(df):
    items = np.resize(df['item'].unique(), 10_000)
    return pd.concat([df, pd.DataFrame({'user': 10**6 + np.arange(10_000)//len(set(items)), 'item': items, 'rating': 5.,
                                        'time': df.time.max()})])


def anonymous(df): return df.assign(user=pd.factorize(df.user)[0] + 1)


def other_catalogue(df):
    ids = np.sort(df['item'].unique())
    return df.assign(item=df['item'].map(dict(zip(ids, np.random.default_rng(3).permutation(ids), strict=True))))


FAULTS = {
    'items shifted': (lambda d, _: shift(d, item=2), 'item fit', 'still mean'),  # by a place
    'users shifted': (lambda d, _: shift(d, user=1), 'ids', 'the user ids are one too high'),
    'yesterday': (lambda d, old: old, 'new ratings', 'taken in before'),
    'flipped': (lambda d, _: d.assign(rating=5.5 - d.rating), 'ids', 'the ratings are upside down'),
    'zeros lost': (lambda d, _: d.assign(item=d['item'].str.lstrip('0')), 'ids',
                   'the item ids lost their leading zeros'),
    'decimal ids': (lambda d, _: d.assign(item=d['item'] + '.0'), 'ids', 'the item ids became decimal numbers'),
    'next year': (lambda d, _: d.assign(time=d.time + 365*86400), 'clock', '365.0 days'),
    'last year': (lambda d, _: d.assign(time=d.time - 365*86400), 'late ratings', 'older than the newest'),
    'milliseconds': (lambda d, _: d.assign(time=d.time*1000), 'time unit', 'in the same unit'),
    'a program': (lambda d, _: bot(d), 'amount', 'new ratings'),
    'ten points': (lambda d, _: d.assign(rating=2*d.rating), 'range', 'from 1 to 10'),
    'shares': (lambda d, _: d.assign(rating=d.rating/5), 'range', 'bring them to the scale of training'),
    'all equal': (lambda d, _: d.assign(rating=5.), 'one rating', '100.0% of the ratings are the same'),
    'anonymous': (lambda d, _: anonymous(d), 'user fit', 'still mean'),
    'other catalogue': (lambda d, _: other_catalogue(d), 'item fit', 'still mean'),
    'conflicts': (lambda d, _: pd.concat([d, d.assign(rating=5.5 - d.rating)]), 'conflicts', 'differently'),
    'a tenth': (lambda d, _: d[:SIZE//10], 'amount', 'a part may be missing'),
    'half': (lambda d, _: d[:SIZE//2], 'end', 'was the file cut short'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_fault_is_refused_by_name(chain, fault):
    damage, name, words = FAULTS[fault]
    _, _, df, tonight = chain
    found = refused(chain, damage(tonight, df.loc[tonight.index - SIZE]))
    assert name in found, found
    assert words.lower() in ' '.join(found.values()).lower(), found
    assert 'expected' in found[name] and 'set the limit' in found[name]


def test_the_first_rating_beyond_the_range_passes(chain):
    "A model may not have met all of its scale: as many pass as a good table may have, unless they lie far outside."
    tonight = chain[3]
    def with_ratings(*values): return tonight.assign(rating=[*values, *tonight.rating[len(values):]])
    assert not refused(chain, with_ratings(5.5)) and not refused(chain, with_ratings(0.))
    for values in ((5.5, 5.5), (0., 5.5), (99.,), (-1.,)):
        assert 'range' in refused(chain, with_ratings(*values)), values


def test_swapped_columns_of_two_kinds(chain):
    with pytest.raises(RatingsError, match='are the columns swapped'):
        checks(chain, chain[3].rename(columns={'user': 'item', 'item': 'user'}))


def test_swapped_columns_of_one_kind(chain):
    learn, _, df, tonight = chain
    numbers = df.assign(item=df['item'].astype(int)//2 - 299)
    learn = collab_learner(CollabDataLoaders.from_df(numbers[:FIRST], valid_pct=0., seed=0))
    quiet(learn, 'fit_als', 5)
    swapped = numbers.loc[tonight.index].rename(columns={'user': 'item', 'item': 'user'})
    found = [str(o) for o in check_table(table_profile(learn, read(swapped), now=NOW)) if not o.ok]
    assert any('the user and item columns are swapped' in o for o in found), found


def test_a_limit_is_what_the_user_says(chain):
    few = chain[3][::10]
    assert [o.name for o in checks(chain, few) if not o.ok] == ['amount']
    assert all(o.ok for o in checks(chain, few, {'min_ratings': 10}))
    assert [o.name for o in checks(chain, chain[3], {'max_one_item': .001}) if not o.ok] == ['one item']
    with pytest.raises(RatingsError, match='no limit'): checks(chain, few, {'max_ids': 1})


@given(st.randoms(use_true_random=False), st.integers(1, 80))
def test_order_of_rows_says_nothing(chain, rng, n):
    learn, earlier, df, tonight = chain
    table = pd.concat([tonight[:n], tonight[:n//2].assign(rating=3.), df.iloc[FIRST - n:FIRST]])
    rows = list(range(len(table)))
    rng.shuffle(rows)
    profiles = [table_profile(learn, read(o), earlier, now=NOW) for o in (table, table.iloc[rows])]
    assert profiles[0] == profiles[1]


@pytest.mark.parametrize('loss', ['ials', 'bpr'])
def test_rankings_are_checked(loss):
    df = planted_ratings(600, 300, 20_000, changed=0.)[['user', 'item']].drop_duplicates()
    df = df.sample(frac=1, random_state=0).reset_index(drop=True)
    dls = CollabDataLoaders.from_df(df[:15_000], valid_pct=0., seed=0, implicit=True, bs=512)
    learn = collab_learner(dls, n_factors=10, loss=loss)
    with learn.no_bar(), learn.no_logging(): learn.fit_als(5) if loss == 'ials' else learn.fit_one_cycle(5, 1e-2)
    def profile(t, earlier=()): return table_profile(learn, read_ratings(t, 'user', 'item', implicit=True), earlier)
    nights = [df[k:k + 300] for k in range(15_000, 18_000, 300)]
    earlier = [profile(o) for o in nights[:-1]]
    assert 'mean' not in earlier[0] and all(o.ok for o in check_table(profile(nights[-1]), earlier))
    shuffled = other_catalogue(nights[-1])
    assert {'popularity', 'item fit'} & {o.name for o in check_table(profile(shuffled), earlier) if not o.ok}


def test_one_rating_has_no_mean():
    usual = [{'n_ratings': 3, 'n_new': 3, 'mean': o, 'std': 1., 'effective_users': 3.} for o in (2.9, 3., 3.1)]
    for mean, is_fine in ((5., True), (9., False)):
        found = check_table({'n_ratings': 1, 'n_new': 1, 'mean': mean, 'std': 0., 'effective_users': 1.}, usual)
        assert {o.name: o.ok for o in found}['mean'] == is_fine


def test_few_users_say_little():
    "A night of three users may have three new ones, or only one user; of a hundred it is a fault."
    def refused(users, top, **tonight):
        usual = {'n_ratings': 150, 'n_new': 150, 'known_users': 1., 'effective_users': users, 'top_user': top}
        return [o.name for o in check_table({**usual, **tonight}, [usual]*10) if not o.ok]
    for tonight, name in ({'known_users': .1}, 'known users'), ({'effective_users': 1., 'top_user': 1.}, 'one user'):
        assert not refused(3., .5, **tonight) and refused(100., .02, **tonight) == [name]
    usual = {'n_ratings': 150, 'n_new': 150, 'effective_users': 3., 'top_user': .5}
    found = map(str, check_table(usual, [usual]*10))
    assert 'one user: 50.0% of the ratings are of one user; expected any share' in found
