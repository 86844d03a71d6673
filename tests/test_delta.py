"Deltas: applied in order they give the very files that were saved, and anything else is refused."
import numpy as np
import pytest
import torch
from helpers import quiet
from safetensors.torch import load_file, save_file

from collab_pretrained.all import CollabDataLoaders, CollabLearner, apply_delta, collab_learner, planted_ratings
from collab_pretrained.core import CheckpointError, SaveError
from collab_pretrained.serve.delta import write_delta
from collab_pretrained.weights.folders import read_folder

RATINGS = planted_ratings(n_users=80, n_items=40, n_ratings=800)[['user', 'item', 'rating']]
KINDS = {'solved': {}, 'ranking': {'loss': 'ials'}, 'network': {'use_nn': True, 'layers': [8]}}


def files(folder): return {o.name: o.read_bytes() for o in folder.iterdir()}


def trained(kind='solved', ratings=RATINGS, n_factors=4):
    table = ratings.drop(columns='rating') if kind == 'ranking' else ratings
    dls = CollabDataLoaders.from_df(table, valid_pct=0, bs=64, implicit=kind == 'ranking')
    learn = collab_learner(dls, **({'n_factors': n_factors} if kind != 'network' else {}), **KINDS[kind])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1) if kind == 'network' else learn.fit_als(2)
    return learn


def saved(learn, folder): return learn.path/learn.save_pretrained(folder.resolve())


def night(learn, n, rng):
    "Some ratings of known and of new ids, or some ids dropped."
    users = np.append(learn.vocab['user'].ids, 1000 + n) if n % 3 else learn.vocab['user'].ids
    if n % 3 == 2: return learn.drop_ids(users=rng.choice(learn.vocab['user'].ids, 2, replace=False).tolist())
    table = RATINGS.iloc[rng.permutation(len(RATINGS))[:15]].copy()
    table['user'] = rng.choice(users, 15)
    table = table.drop_duplicates(['user', 'item'])
    return learn.update(table.drop(columns='rating') if learn.ranking else table)


@pytest.mark.parametrize('kind', ['solved', 'ranking'])
def test_a_chain_of_nights_gives_the_same_files(kind, tmp_path):
    rng = np.random.default_rng(0)
    folders, deltas = [saved(trained(kind), tmp_path/'0')], []
    for n in range(1, 6):
        learn = CollabLearner.from_pretrained(folders[-1])
        night(learn, n, rng)
        folders.append(saved(learn, tmp_path/str(n)))
        deltas.append(write_delta(folders[-2], folders[-1], tmp_path/f'{n}.delta'))
    replica = tmp_path/'replica'
    apply_delta(folders[0], deltas[0], out=replica)
    for delta, folder in zip(deltas, folders[1:], strict=True):
        if delta is not deltas[0]: apply_delta(replica, delta)
        assert files(replica) == files(folder)
    one = write_delta(folders[0], folders[-1], tmp_path/'one.delta')
    assert files(apply_delta(folders[0], one)) == files(folders[-1])


def test_layers_of_a_network_and_text_ids(tmp_path):
    text = RATINGS.astype({'user': str})
    learn = trained('network', text)
    old = saved(learn, tmp_path/'old')
    quiet(learn, 'fit', 1)
    new = saved(learn, tmp_path/'new')
    assert files(apply_delta(old, write_delta(old, new, tmp_path/'x.delta'))) == files(new)


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('chain')
    learn, rng = trained(), np.random.default_rng(1)
    saved(learn, tmp/'0')
    for n in (1, 2, 3):
        night(learn, 1, rng)
        learn.save_delta(tmp/f'{n}.delta', since=tmp/f'{n - 1}')
        saved(learn, tmp/f'{n}')
    return tmp


@pytest.mark.parametrize('model, delta', [(n, d) for n in range(4) for d in range(1, 4) if d != n + 1])
def test_only_in_order_and_once(chain, model, delta):
    before = files(chain/str(model))
    with pytest.raises(CheckpointError, match='expected each delta once, in the order'):
        apply_delta(chain/str(model), chain/f'{delta}.delta')
    assert files(chain/str(model)) == before


def test_damage_is_refused_and_leaves_the_folder(chain, tmp_path):
    raw, before = (chain/'1.delta').read_bytes(), files(chain/'0')
    header = 8 + int.from_bytes(raw[:8], 'little')
    rng = np.random.default_rng(0)
    bad = [raw[:-1], raw[:header - 5], b'', raw + b'x', b'{}']
    for at in [*rng.integers(header, len(raw), 20), *rng.integers(8, header, 100)]:
        bad.append(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:])
    for i, o in enumerate(bad):
        (tmp_path/f'{i}.delta').write_bytes(o)
        with pytest.raises(CheckpointError): apply_delta(chain/'0', tmp_path/f'{i}.delta')
    assert files(chain/'0') == before
    tensors = load_file(chain/'1.delta')
    save_file(tensors, tmp_path/'no_facts.delta')
    with pytest.raises(CheckpointError, match='without facts'): apply_delta(chain/'0', tmp_path/'no_facts.delta')


def bytes_changed(new, old):
    n, new, old = len(old), new.reshape(len(new), -1), old.reshape(len(old), -1)
    return new[0].nbytes*(len(new) - n + int((new[:n] != old).any(1).sum()))


def test_holds_no_more_than_what_changed(tmp_path):
    "At most 1.2 times the bytes of changed rows and pairs, with 4 KB of facts; no id of a row that was left alone."
    ratings = planted_ratings(n_users=3000, n_items=1000, n_ratings=8000)[['user', 'item', 'rating']]
    learn = trained(ratings=ratings, n_factors=30)
    old = saved(learn, tmp_path/'old')
    learn.update(ratings.assign(user=ratings.user + 5000)[:200])
    new = saved(learn, tmp_path/'new')
    (wgts, _, config), (was, _, was_config) = read_folder(new), read_folder(old)
    pairs = [(t, was[k]) for k, t in wgts.items()]
    pairs += [(t, was_config['tables']['posterior'][k]) for k, t in config['tables']['posterior'].items()]
    changed = 8*200 + sum(bytes_changed(t, o) for t, o in pairs if len(t) > 50)  # 200 pairs of two rows were seen
    assert write_delta(old, new, tmp_path/'x.delta').stat().st_size < 1.2*changed + 4000


def test_another_order_is_refused(tmp_path):
    old, new = saved(trained(), tmp_path/'old'), saved(trained(ratings=RATINGS[RATINGS.user != 3]), tmp_path/'new')
    learn = trained(ratings=RATINGS[RATINGS.user != 3])
    learn.update(RATINGS[RATINGS.user == 3])
    late = saved(learn, tmp_path/'late')
    write_delta(old, new, tmp_path/'x.delta')  # a user was dropped
    with pytest.raises(SaveError, match='stand in another order'): write_delta(old, late, tmp_path/'y.delta')
    assert not (tmp_path/'y.delta').exists()
    assert torch.equal(*(read_folder(o)[0]['u_weight.weight'] for o in (late, late)))
