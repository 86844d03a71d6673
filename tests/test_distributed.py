"""Two processes, started by torchrun, against one. `torchrun tests/test_distributed.py FOLDER` is what each of the two
runs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.metrics import mae, rmse
from fastai.tabular.model import tabular_config

from collab_pretrained.all import (
    CollabDataLoaders,
    CollabLearner,
    EmbeddingDotBias,
    RatingsError,
    WeightsError,
    collab_learner,
    planted_ratings,
)
from collab_pretrained.core import SIDES
from collab_pretrained.models.embeddings import collab_splitter
from collab_pretrained.scale import from_torchrec, load_sharded, save_sharded, shard_embeddings, to_torchrec

pytestmark = pytest.mark.dist
RATINGS = planted_ratings(n_users=80, n_items=50, n_ratings=1202)[['user', 'item', 'rating']]


def learner(path, bs=64, seed=42, n=None, **kwargs):
    "481 ratings validate, and the last batch that trains has 17 rows: neither divides by two."
    dls = CollabDataLoaders.from_df(RATINGS, valid_pct=.4, bs=bs, n=n, val_bs=100, seed=seed, path=path)
    torch.manual_seed(7 + 1000*int(os.environ.get('RANK', 0)))  # what a process draws itself must not matter
    if int(os.environ.get('RANK', 0)) == 0: torch.manual_seed(7)
    return collab_learner(dls, **{'n_factors': 6, 'y_range': (0, 5.5), 'metrics': [mae, rmse], **kwargs})


def results(learn):
    rec = learn.recorder
    return {
        'weights': {k: v.clone() for k, v in learn.model.state_dict().items()},
        'losses': torch.stack([torch.as_tensor(o) for o in rec.losses]),
        'values': torch.tensor([[float(x) for x in o] for o in rec.values]),
        'names': list(rec.metric_names[1:-1]),
    }


def quiet_fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(*args, **kwargs)


def dot(path):
    learn = learner(path)
    with learn.distrib_ctx():
        quiet_fit(learn, 2, 1e-2)
        quiet_fit(learn, 1, 1e-2)
        fitted = results(learn)
        with learn.no_bar(): preds, targs = learn.get_preds()
        learn.save('today')
    assert not dist.is_initialized()
    again = learner(path, seed=42).load('today')
    with again.no_bar():
        return {
            **fitted,
            'preds': preds,
            'targs': targs,
            'preds after': again.get_preds()[0],
            'validate': torch.tensor(again.validate()),
        }


def warm(path):
    learn = learner(path, pretrained='yesterday')
    with learn.distrib_ctx(): quiet_fit(learn, 1, 1e-2, cbs=[GradientAccumulation(200), GradientClip(.05)])
    return results(learn)


def sparse(path):
    "Steps by row: what goes around are the gradients of the batch's rows."
    learn = learner(path, sparse=True)
    with learn.distrib_ctx():
        quiet_fit(learn, 2, 1e-2, wd=.1)
        save_sharded(learn, 'whole')
        again = load_sharded(learner(path, sparse=True), 'whole')
    return {
        **results(learn),
        'again': dict(again.model.state_dict()),
        'moments': torch.cat(
            [
                v.flatten()
                for p in learn.model.parameters()
                for v in learn.opt.state[p].values()
                if isinstance(v, torch.Tensor)
            ]
        ),
    }


def frozen(path):
    "Frozen rows are those of the first process, where each drew its own."
    learn = learner(path).freeze_rows([1, 3, 4], 'user')
    with learn.distrib_ctx(): quiet_fit(learn, 1, 1e-2)
    return results(learn)


def tiny_batches(path):
    learn = learner(path, bs=1, n=20)
    with learn.distrib_ctx(): quiet_fit(learn, 1, 1e-3)
    return results(learn)


def train_metrics(path):
    learn = learner(path)
    learn.recorder.train_metrics = True
    with learn.distrib_ctx(): quiet_fit(learn, 1, 1e-2)
    return results(learn)


def network(path, use_bn=False):
    learn = learner(path, use_nn=True, layers=[8], config=tabular_config(use_bn=use_bn))
    with learn.distrib_ctx(): quiet_fit(learn, 1, 1e-2)
    return results(learn)


def solved(path, **kwargs):
    "Rows in closed form, some of them frozen."
    learn = learner(path, **kwargs).freeze_rows([1, 3, 4], 'user')
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging(): learn.fit_als(3)
    assert learn.process is None
    return {**results(learn), 'tables': {k: o for k, o in learn.saved_tables(look=True).items() if k != 'seen'}}


def group_of_ones_own(path):
    "A group that was there before is used, and left alone."
    if 'RANK' in os.environ: dist.init_process_group('gloo')
    learn = learner(path)
    with learn.distrib_ctx(): quiet_fit(learn, 1, 1e-2)
    if 'RANK' in os.environ: dist.destroy_process_group()
    return results(learn)


def whole(t): return t.full_tensor() if hasattr(t, 'full_tensor') else t.clone()


def sharded(path, use_nn=False):
    "Trained in pieces, saved, and loaded again in pieces."
    kwargs = dict(use_nn=True, layers=[8], config=tabular_config(use_bn=False)) if use_nn else {}
    learn = learner(path, **kwargs)
    with learn.distrib_ctx():
        shard_embeddings(learn)
        quiet_fit(learn, 2, 1e-2)
        with learn.no_bar(): preds = learn.get_preds()[0]
        save_sharded(learn, 'pieces')
        again = load_sharded(shard_embeddings(learner(path, **kwargs)), 'pieces')
        opt = {
            f'{name} {k}': whole(v) if isinstance(v, torch.Tensor) else v
            for name, p in again.model.named_parameters()
            for k, v in again.opt.state[p].items()
            if k != 'do_wd'
        }
        sizes = {k: v.to_local().shape[0] for k, v in learn.model.state_dict().items() if hasattr(v, 'to_local')}
        got = {
            k: {n: whole(t) for n, t in o.model.state_dict().items()} for k, o in (('weights', learn), ('again', again))
        }
    assert (
        not sizes
        or not dist.is_initialized()
        and 2 * sizes['u_weight.weight' if not use_nn else 'embeds.0.weight'] <= len(learn.dls.classes['user']) + 1
    )
    return {**got, 'opt': opt, 'preds': preds, 'values': results_of(learn)}


def known(learn):
    "All that a learner knows beyond its rows, in one process."
    with learn.whole_tables(): return learn.saved_tables()


def described(path, **kwargs):
    "A learner with features of its items."
    genre = RATINGS[['item']].drop_duplicates().assign(genre=lambda o: o.item % 3).set_index('item')
    learn = learner(path, **kwargs)
    learn.set_features({'item': genre.astype('category')})
    return learn


def solved_in_pieces(path):
    "Rows in closed form over tables in pieces, saved, loaded, and started from over other ids."
    learn = described(path)
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        shard_embeddings(learn)
        learn.fit_als(2)
        learn.fit_als(1)
        tables = [o for side in SIDES for o in vars(learn.posterior.side(side)[0]).values() if len(o) > 40]
        save_sharded(learn, 'solved')
        again = load_sharded(shard_embeddings(learner(path)), 'solved')
        other = shard_embeddings(few(path, y_range=(0, 5.5)), 'solved')
        to_torchrec(again, 'there')
        back = from_torchrec(shard_embeddings(few(path, y_range=(0, 5.5))), 'there')
        assert all(hasattr(o, 'to_local') == dist.is_initialized() for o in tables)
        res = {k: known(o) for k, o in (('learn', learn), ('again', again), ('other', other), ('back', back))}
        res['weights'] = {k: whole(v) for k, v in learn.model.state_dict().items()}
        quiet_fit(learn, 1, 1e-2)
        res['values'] = results_of(learn)
    return res


def results_of(learn): return torch.tensor([[float(x) for x in o] for o in learn.recorder.values])


def warm_in_pieces(path):
    "Tables on 'meta', started from a folder over other ids, and from a memory-mapped one."
    found = {}
    for source in ('yesterday_folder', 'yesterday_pieces'):
        dls = learner(path).dls
        with torch.device('meta' if 'RANK' in os.environ else 'cpu'):
            model = EmbeddingDotBias.from_classes(6, dls.classes, y_range=(0, 5.5))
        learn = CollabLearner(dls, model, loss_func=torch.nn.MSELoss(), splitter=collab_splitter)
        learn.loss_func = lambda pred, y: torch.nn.functional.mse_loss(pred.flatten(), y.flatten())
        with learn.distrib_ctx():
            shard_embeddings(learn, pretrained=source)
            quiet_fit(learn, 1, 1e-2)
            found[source] = {k: whole(v) for k, v in learn.model.state_dict().items()}
        found[source]['matched'] = torch.tensor(learn.match_report.users.rows)
    return found


def sources(path):
    "What `warm` and `warm_in_pieces` start from."
    learner(path).save('yesterday')
    few = RATINGS[(RATINGS.user < 60) & (RATINGS.item > 5)]
    torch.manual_seed(1)
    old = collab_learner(CollabDataLoaders.from_df(few, seed=1, path=path), n_factors=6, y_range=(0, 5.5))
    quiet_fit(old, 1, 1e-2)
    old.save_pretrained('yesterday_folder')
    save_sharded(old, 'yesterday_pieces')


SAME = dict(
    solved=solved,
    solved_without_range=lambda path: solved(path, y_range=None),
    solved_ranking=lambda path: solved(path, y_range=None, loss='ials', metrics=[]),
    group_of_ones_own=group_of_ones_own,
    sharded=sharded,
    solved_in_pieces=solved_in_pieces,
    sharded_network=lambda path: sharded(path, use_nn=True),
    warm_in_pieces=warm_in_pieces,
    dot=dot,
    warm=warm,
    sparse=sparse,
    frozen=frozen,
    tiny_batches=tiny_batches,
    train_metrics=train_metrics,
    network=network,
)  # two processes equal one


STARTED = 'warm', 'warm_in_pieces', 'rows_read'  # from models that `sources` makes


def save_of_pieces(path):
    "`save` of tables in pieces raises in every process."
    learn = learner(path)
    with learn.distrib_ctx():
        shard_embeddings(learn)
        errors = []
        for save in (learn.save, learn.save_pretrained):
            try: save('no')
            except WeightsError as e: errors.append(str(e))
        assert not (path/'models/no.pth').exists() and not (path/'no').exists()
    return errors


def rows_read(path):
    "How many rows of which kind a process reads for a start in pieces."
    from collab_pretrained.scale.pieces import Pieces
    learn, read, take = learner(path), [], Pieces.take
    Pieces.take = lambda self, rows: (read.append((self.shape, len(rows))), take(self, rows))[1]
    try:
        with learn.distrib_ctx(): shard_embeddings(learn, pretrained='yesterday_pieces')
    finally: Pieces.take = take
    report = learn.match_report
    return {
        'read': read,
        'old': [len(o.old_vocab) for o in (report.users, report.items)],
        'found': [int((o.rows >= 0).sum()) for o in (report.users, report.items)],
        'all': [len(o.rows) for o in (report.users, report.items)],
    }


def other_splits(path):
    learn = learner(path, seed=None if not int(os.environ.get('RANK', 0)) else 1)
    try:
        with learn.distrib_ctx(): quiet_fit(learn, 1)
    except RatingsError as e: return {'error': str(e), 'is_initialized': dist.is_initialized()}


def few(path, **kwargs):
    "A learner over fewer and other ids."
    changed = RATINGS[(RATINGS.user > 20) & (RATINGS.item < 40)].assign(
        user=lambda o: o.user.where(o.user < 70, o.user + 1000)
    )
    return collab_learner(CollabDataLoaders.from_df(changed, bs=64, seed=3, path=path), n_factors=6, **kwargs)


def torchrec_model(kind, n_rows):
    """A product of two rows and two biases, TorchRec's tables spread over both processes by rows, by columns, or not
    cut."""
    from torchrec import (
        EmbeddingBagCollection,
        EmbeddingBagConfig,
        EmbeddingCollection,
        EmbeddingConfig,
        KeyedJaggedTensor,
    )
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    bags = kind == 'column_wise'
    module, config = (EmbeddingBagCollection, EmbeddingBagConfig) if bags else (EmbeddingCollection, EmbeddingConfig)

    class Product(torch.nn.Module):
        def __init__(self, device):
            super().__init__()
            self.ec = module(
                tables=[
                    config(name=o, embedding_dim=8, num_embeddings=n, feature_names=[o]) for o, n in n_rows.items()
                ],
                device=device,
            )

        def forward(self, users, items):
            got = self.ec(
                KeyedJaggedTensor(
                    ['user', 'item'], torch.cat([users, items]), lengths=torch.ones(2 * len(users), dtype=torch.int32)
                )
            )
            u, i = (got[o] if bags else got[o].values() for o in n_rows)
            return (u[:, :6]*i[:, :6]).sum(1) + u[:, 6] + i[:, 6]

    if kind == 'plain': return Product(torch.device('cpu'))
    model, sharders = Product(torch.device('meta')), [EmbeddingCollectionSharder(), EmbeddingBagCollectionSharder()]
    constraints = {o: ParameterConstraints(sharding_types=[kind], min_partition=4) for o in n_rows}
    plan = EmbeddingShardingPlanner(topology=Topology(dist.get_world_size(), 'cpu'), constraints=constraints).plan(
        model, sharders
    )
    return DistributedModelParallel(model, device=torch.device('cpu'), plan=plan, sharders=sharders)


def through_torchrec(path):
    "There from tables in pieces, a step of TorchRec's own, and back over other ids."
    if not find_spec('torchrec'): return None
    from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, load, save
    learn, res = learner(path, y_range=None), {}
    x = learn.dls.valid.new(shuffle=False).one_batch()[0]
    with learn.distrib_ctx():
        shard_embeddings(learn)
        quiet_fit(learn, 1, 1e-2)
        for kind in ('plain', 'row_wise', 'column_wise'):
            to_torchrec(
                learn,
                f'there_{kind}',
                names='ec.embedding_bags.{}.weight' if kind == 'column_wise' else 'ec.embeddings.{}.weight',
            )
            model = torchrec_model(kind, dict(zip(('user', 'item'), map(len, learn.vocab.values()), strict=True)))
            state = model.state_dict()
            load(state, storage_reader=HuggingFaceStorageReader(str(path/f'there_{kind}')))
            model.load_state_dict(state)
            before = model(*x.T)
            before.square().mean().backward()  # the kernels of tables that are spread make the step as well
            if kind == 'plain': torch.optim.SGD(model.parameters(), .1).step()
            save(
                model.state_dict(),
                storage_writer=HuggingFaceStorageWriter(str(path / f'back_{kind}'), save_distributed=True),
            )
            back = from_torchrec(shard_embeddings(few(path)), f'back_{kind}', vocab=f'there_{kind}')
            res[kind] = {
                'before': before.detach(),
                'after': model(*x.T).detach(),
                'weights': {k: whole(v) for k, v in back.model.state_dict().items()},
            }
        with torch.no_grad(): res['ours'] = learn.model.eval()(x)
    return {**res, 'x': x}


OTHER = dict(
    batch_norm=lambda path: network(path, use_bn=True),
    other_splits=other_splits,
    save_of_pieces=save_of_pieces,
    through_torchrec=through_torchrec,
    rows_read=rows_read,
)


def torchrun(folder, n=2):
    "What each of `n` processes found, by rank."
    env = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get('PYTHONPATH', '')]),
    }
    cmd = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        str(n),
        __file__,
        str(folder),
    ]
    proc = subprocess.Popen(cmd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try: said = proc.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        proc.terminate()  # torchrun then ends its processes; were it killed, they would stay
        said = proc.communicate()[0]
    assert not proc.returncode, said[-5000:]
    return [torch.load(folder/f'{rank}.pt', weights_only=False) for rank in range(n)]


@pytest.fixture(scope='session')
def two(tmp_path_factory):
    if not find_spec('accelerate'): pytest.skip("accelerate is missing: pip install 'collab_pretrained[distrib]'")
    if not hasattr(torch.distributed.checkpoint, 'HuggingFaceStorageWriter'): pytest.skip('torch is older than 2.13')
    folder = tmp_path_factory.mktemp('two')
    for name in STARTED: sources(folder/name)
    return torchrun(folder)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(o, p) for o, p in zip(leaves(a), leaves(b), strict=True))


def leaves(x): return [o for v in x.values() for o in leaves(v)] if isinstance(x, dict) else [x]


@pytest.mark.parametrize('name', SAME)
def test_two_processes_equal_one(two, name, tmp_path):
    if name in STARTED: sources(tmp_path)
    one, (first, second) = SAME[name](tmp_path), (o[name] for o in two)
    for a, b, c in zip(*map(leaves, (one, first, second)), strict=True):
        if not isinstance(a, torch.Tensor): assert a == b == c
        else:
            assert a.shape == b.shape and a.dtype == b.dtype
            assert torch.equal(b, c)
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_processes_agree_on_batch_normalization(two):
    first, second = (o['batch_norm'] for o in two)
    assert any('running' in k for k in first['weights'])
    assert all(torch.equal(a, b) for a, b in zip(leaves(first['weights']), leaves(second['weights']), strict=True))


def test_other_splits_are_refused(two):
    for o in two:
        assert 'process 1 holds other ratings' in o['other_splits']['error'] and 'seed=' in o['other_splits']['error']
        assert not o['other_splits']['is_initialized']


def test_tables_in_pieces_are_not_saved_as_whole_ones(two):
    for o in two: assert len(o['save_of_pieces']) == 2 and all('save_sharded' in e for e in o['save_of_pieces'])


def test_saved_by_two_loaded_by_one(two, tmp_path):
    learn = load_sharded(learner(tmp_path), two[0]['folder']/'sharded/pieces')
    for k, v in learn.model.state_dict().items(): assert torch.equal(v, two[0]['sharded']['weights'][k])
    assert learn.opt.state[learn.model.u_weight.weight]['step'] == two[0]['sharded']['opt']['u_weight.weight step']
    solved, saved = two[0]['folder']/'solved_in_pieces/solved', two[0]['solved_in_pieces']['learn']
    assert equal(known(load_sharded(learner(tmp_path), solved)), saved)
    started = shard_embeddings(few(tmp_path, y_range=(0, 5.5)), solved)
    assert equal(known(started), two[0]['solved_in_pieces']['other'])


def test_each_process_reads_its_own_rows(two):
    "Its share of the old rows, for their mean, and the old rows of its new rows: each old row by one process."
    first, second = (o['rows_read'] for o in two)
    for n_old, n_found, n_all in zip(first['old'], first['found'], first['all'], strict=True):
        of_side = [sum(n for shape, n in o['read'] if shape == (n_old, 6)) for o in (first, second)]
        assert sum(of_side) == n_old - 1 + n_found  # '#na#' is in no mean
        assert max(of_side) <= (n_old + n_all)//2 + 1


def load_in_group(rank, world, folder, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/store', rank=rank, world_size=world)
    learn = load_sharded(shard_embeddings(learner(path)), folder/'sharded/pieces')
    solved = load_sharded(shard_embeddings(learner(path)), folder/'solved_in_pieces/solved')
    found = {
        'weights': {k: whole(v) for k, v in learn.model.state_dict().items()},
        'moments': whole(learn.opt.state[learn.model.u_weight.weight]['grad_avg']),
        'known': known(solved),
        'own': len(solved.posterior.users.variance.to_local()),
    }
    torch.save({**found, 'rows': len(learn.model.u_weight.weight.to_local())}, path/f'{rank}.pt')
    dist.destroy_process_group()


def test_saved_by_two_loaded_by_three(two, tmp_path):
    import multiprocessing

    procs = [
        multiprocessing.get_context('fork').Process(
            target=load_in_group, args=(o, 3, two[0]['folder'], tmp_path)
        )
        for o in range(3)
    ]
    for o in procs: o.start()
    for o in procs: o.join(120)
    assert [o.exitcode for o in procs] == [0, 0, 0]
    found, saved = [torch.load(tmp_path/f'{o}.pt') for o in range(3)], two[0]['sharded']
    for o in found:
        assert all(torch.equal(v, saved['weights'][k]) for k, v in o['weights'].items())
        assert torch.equal(o['moments'], saved['opt']['u_weight.weight grad_avg'])
        assert equal(o['known'], two[0]['solved_in_pieces']['learn'])
    for k in ('rows', 'own'): assert max(o[k] for o in found) == -(-sum(o[k] for o in found)//3)


@pytest.mark.skipif(
    not find_spec('torchrec'), reason='torchrec is missing; nbs/73_scale.torchrec.ipynb tells how to install it'
)
@pytest.mark.parametrize('kind', ['plain', 'row_wise', 'column_wise'])
def test_through_torchrec(two, kind, tmp_path):
    first, second = (o['through_torchrec'] for o in two)
    got, folder = first[kind], two[0]['folder']/'through_torchrec'
    assert all(torch.equal(a, b) for a, b in zip(leaves(got), leaves(second[kind]), strict=True))
    torch.testing.assert_close(got['before'], first['ours'], rtol=1e-6, atol=1e-6)
    assert (got['after'] - got['before']).abs().max() > 1e-5
    back = from_torchrec(
        learner(folder, y_range=None), f'back_{kind}', vocab=f'there_{kind}'
    )  # over the same ids: every row bit for bit
    with torch.no_grad(): torch.testing.assert_close(back.model(first['x']), got['after'], rtol=1e-6, atol=1e-6)
    one, old = from_torchrec(few(folder), f'back_{kind}', vocab=f'there_{kind}'), back.model.state_dict()
    assert 0 < len(one.match_report.users.new) and 0 < len(one.match_report.items.dropped)
    for k, v in one.model.state_dict().items():
        rows = torch.from_numpy((one.match_report.users if k[0] == 'u' else one.match_report.items).rows)
        assert torch.equal(v[rows >= 0], old[k][rows[rows >= 0]]) and torch.equal(
            v[rows >= 0], got['weights'][k][rows >= 0]
        )
        torch.testing.assert_close(v, got['weights'][k], rtol=1e-6, atol=1e-6)


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    found = {'folder': folder}
    for name, scenario in {**SAME, **OTHER}.items(): found[name] = scenario(folder/name)
    torch.save(found, folder/f'{os.environ["RANK"]}.pt')
