"What a nightly job is promised: nothing is made worse, nothing is half done, and what is forgotten is in no file."
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import quiet, run
from test_checkpoint_files import Folder, child, model, status, tables

from collab_pretrained.core import CheckpointError, CollabWarning, SaveError, config_bytes, one_writer, planted_ratings
from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.core import CollabLearner
from collab_pretrained.learner.factory import collab_learner
from collab_pretrained.serve import night as module
from collab_pretrained.serve import versions
from collab_pretrained.serve.benchmark import compare, is_worse
from collab_pretrained.serve.delta import apply_delta
from collab_pretrained.serve.night import forget, night
from collab_pretrained.serve.versions import (
    add_version,
    clean_up,
    history,
    lineage_of,
    read_facts,
    rollback,
    served_version,
    versions_of,
)
from collab_pretrained.weights.folders import save_folder

DF = planted_ratings(n_users=80, n_items=60, n_ratings=3000)[['user', 'item', 'rating', 'time']]
DF['user'] = DF.user.map('user-{:05d}'.format)
FIRST, NIGHTS = DF[:2000], [DF[o:o + 250] for o in range(2000, 3000, 250)]


def trained(folder, df=FIRST, **kwargs):
    learn = collab_learner(CollabDataLoaders.from_df(df, valid_pct=0., seed=1), n_factors=4, **kwargs)
    quiet(learn, 'fit_als', 3)
    return learn.save_pretrained(folder)


@pytest.fixture(scope='module')
def week(tmp_path_factory): return trained(tmp_path_factory.mktemp('week')/'model')


@pytest.fixture
def served(week, tmp_path): return Path(shutil.copytree(week, tmp_path/'model'))


def content(folder): return {o.relative_to(folder): o.read_bytes() for o in sorted(folder.rglob('*')) if o.is_file()}
def served_files(folder): return {k: v for k, v in content(folder).items() if k.parts[0] != 'reports'}


def test_a_good_night_is_promoted(served):
    report = night(served, NIGHTS[0], time='time')
    assert (report.verdict, report.reason, report.version, report.n_new) == ('promoted', '', 2, 250)
    learn = CollabLearner.from_pretrained(served)
    pairs = np.stack([v.rows(NIGHTS[0][c]) for c, v in learn.vocab.items()], 1)
    assert (pairs >= 0).all() and learn.evidence().has(pairs).all()  # those that were held out, too
    entry = lineage_of(read_facts(served))[-1]
    assert entry['parent'] == read_facts(served/'versions/00001')['checksum'] and entry['profile']
    assert not (served/'model.safetensors').exists() and versions_of(served) == [1, 2]
    assert json.loads(next((served/'reports').glob('*.json')).read_bytes())['verdict'] == 'promoted'


def test_what_was_taken_in_is_not_taken_in_again(served):
    night(served, NIGHTS[0])
    before = served_files(served)
    again = night(served, NIGHTS[0])
    assert (again.verdict, again.n_new, again.n_repeated, again.version) == ('refused', 0, 250, 2)
    assert served_files(served) == before and list(history(served).verdict) == ['saved', 'promoted', 'refused']
    whole = night(served, DF[:2500])
    assert (whole.verdict, whole.n_new, whole.n_repeated) == ('promoted', 250, 2250)
    learn, part = CollabLearner.from_pretrained(served), CollabLearner.from_pretrained(served/'versions/00002')
    for rows in module.hold_out(NIGHTS[1], list(part.vocab), None): part.update(rows, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(learn.model.parameters(), part.model.parameters(), strict=True))


def test_the_newest_rating_of_a_pair_counts(served):
    twice = pd.concat([NIGHTS[0].assign(rating=1., time=NIGHTS[0].time - 1), NIGHTS[0]])[::-1]
    new = module.read_night(CollabLearner.from_pretrained(served), twice, 'time').new
    pd.testing.assert_frame_equal(new, NIGHTS[0])


def test_a_model_that_got_worse_is_refused(served, monkeypatch):
    take_in, before = module._take_in, served_files(served)
    def spoiled(learn, ratings, features=None):
        take_in(learn, ratings)
        with torch.no_grad(): learn.model.i_bias.weight.add_(2)
    monkeypatch.setattr(module, '_take_in', spoiled)
    report = night(served, NIGHTS[0])
    assert report.verdict == 'refused' and 'worse' in report.reason and is_worse(report.compared)
    assert served_files(served) == before


@pytest.mark.parametrize('kind', ['network', 'ranking', 'clicks'])
def test_other_models_have_nights(tmp_path, kind):
    df = FIRST if kind != 'clicks' else FIRST[['user', 'item']]
    dls = CollabDataLoaders.from_df(df, valid_pct=0., seed=1, implicit=kind == 'clicks')
    learn = collab_learner(dls, n_factors=4, use_nn=kind == 'network', loss=None if kind == 'network' else 'ials')
    with learn.no_bar(), learn.no_logging():
        if kind == 'network': learn.fit_one_cycle(1)
        else: learn.fit_als(2)
    report = night(learn.save_pretrained(tmp_path/'model'), NIGHTS[0], time='time')
    assert report.verdict == 'promoted', report.reason
    assert {o.metric for o in report.compared} == ({'rmse'} if kind == 'network' else {'ndcg@10', 'recall@10'})
    assert np.isfinite(report.compared[0].floor)


def test_a_save_over_versions_is_served_and_becomes_one(served):
    night(served, NIGHTS[0])
    learn = CollabLearner.from_pretrained(served)
    learn.update(NIGHTS[1])
    learn.save_pretrained(served)
    assert served_version(served) is None and len(CollabLearner.from_pretrained(served).seen) == 2500
    assert night(served, NIGHTS[2]).version == 4 and versions_of(served) == [1, 2, 3, 4]
    assert [o['version'] for o in lineage_of(read_facts(served))] == [1, 2, 3, 4]
    assert rollback(served) == 3 and len(CollabLearner.from_pretrained(served).seen) == 2500


def test_rollback_and_the_night_after(served):
    for o in NIGHTS[:3]: night(served, o, keep=3)
    assert versions_of(served) == [2, 3, 4] and rollback(served, to=2) == 2
    assert len(CollabLearner.from_pretrained(served).seen) == 2250
    assert night(served, NIGHTS[3]).version == 5  # a number is given once
    assert [o['version'] for o in lineage_of(read_facts(served))] == [1, 2, 5]
    with pytest.raises(CheckpointError, match=r'no version 1; expected one of \[2, 3, 4, 5\]'): rollback(served, to=1)


def test_who_is_forgotten_is_in_no_file(served, tmp_path):
    users = ['user-00003', FIRST.user.iloc[0], NIGHTS[0].user.iloc[0]]
    lists, vectors = tmp_path/'lists.csv', tmp_path/'vectors'
    for o in NIGHTS[:2]: night(served, o, recommend=lists, export=vectors)
    write = served/'reports/0.json'  # of a check that names somebody
    write.write_text(json.dumps({'when': '0', 'verdict': 'refused', 'reason': f'one user: {users[1]} has 99%'}))
    assert any(users[1].encode() in o for o in content(tmp_path).values())
    done = forget(served, users, items=[int(FIRST['item'].iloc[0])])
    assert (done.n_items, done.removed, versions_of(served)) == (1, [1, 2, 3], [4])
    left = content(tmp_path)
    assert not [k for k, raw in left.items() for u in users if u.encode() in raw]
    known = CollabLearner.from_pretrained(served).side('user').vocab.ids
    assert len(pd.read_parquet(vectors/'users.parquet')) == len(known)
    assert not (pd.read_csv(lists)['item'] == FIRST['item'].iloc[0]).any()
    assert night(served, NIGHTS[2]).version == 5


# Versions of which every row tells which one it is
def save_as(k):
    def save(folder, lineage): save_folder(folder, *model(k), {'k': k, 'lineage': lineage, 'counts': {
        'users': list(range(len(model(k)[1]['user']) - 1))}}, tables(k))
    return save


@pytest.mark.parametrize('between', ['a save', 'a rollback'])
def test_who_is_forgotten_is_in_no_list_of_any_night(served, tmp_path, between):
    night(served, NIGHTS[0], recommend=tmp_path/'first.csv')
    night(served, NIGHTS[1], recommend=tmp_path/'second.csv')
    if between == 'a save': CollabLearner.from_pretrained(served).save_pretrained(served)
    else:
        rollback(served, 1)
        night(served, NIGHTS[2], keep=1)
    who = pd.read_csv(tmp_path/'first.csv').user[0]
    forget(served, users=[who])
    for name in ('first', 'second'): assert who not in pd.read_csv(tmp_path/f'{name}.csv').user.tolist()


def test_a_reader_gets_one_version(tmp_path):
    def nights():
        for k in range(2, 100):
            with one_writer(tmp_path): add_version(tmp_path, save_as(k), {}, keep=1)
            if k % 3 == 0 and len(versions_of(tmp_path)) > 1: rollback(tmp_path)
    Folder.save(tmp_path, 1)
    seen = []
    with child(nights) as pid:
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and len(set(seen)) < 25: seen.append(Folder.which(tmp_path))
        os.kill(pid, signal.SIGKILL)
    assert len(set(seen)) > 5 and seen == sorted(seen)


def test_a_kill_leaves_the_version_before_or_the_new_one(tmp_path, times):
    def nights():
        for k in range(Folder.which(tmp_path) + 1, 10**6): add_version(tmp_path, save_as(k % 1000), {}, keep=2)
    Folder.save(tmp_path, 1)
    start = time.time()
    add_version(tmp_path, save_as(2), {})
    seconds = time.time() - start
    for seed in range(times(100)):
        before, end = Folder.which(tmp_path), time.time() + 60
        with child(nights) as pid:
            while not seed and Folder.which(tmp_path) == before and time.time() < end: time.sleep(.01)  # at work
            time.sleep(random.Random(seed).uniform(0, (2 + seed/10)*seconds))
            os.kill(pid, signal.SIGKILL)
            status(pid)
        assert Folder.which(tmp_path) >= before
        clean_up(tmp_path, 2)
        assert {o.name for o in tmp_path.iterdir()} <= {'config.json', 'versions', *Folder.files}
        assert all('config.json' in os.listdir(o) for o in (tmp_path/'versions').glob('*'))
    assert Folder.which(tmp_path) > 2


def test_a_killed_night_leaves_what_was_served(served, times):
    before = {o.name: o.read_bytes() for o in served.iterdir()}
    for seed in range(times(20)):
        with child(lambda: night(served, NIGHTS[0])) as pid:
            time.sleep(random.Random(seed).uniform(.01, .5))
            os.kill(pid, signal.SIGKILL)
            status(pid)
        n = len(CollabLearner.from_pretrained(served).seen)
        assert n == {None: 2000, 2: 2250}[served_version(served)]
        shutil.rmtree(served)
        served.mkdir()
        for name, raw in before.items(): (served/name).write_bytes(raw)
    assert night(served, NIGHTS[0]).version == 2


def test_a_full_disk_leaves_what_was_served(served, tmp_path):
    night(served, NIGHTS[0])
    before = served_files(served)
    def on_full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try: night(served, NIGHTS[1])
        except SaveError: os._exit(5)
    with child(on_full_disk) as pid: assert status(pid) == 5
    assert served_files(served) == before
    assert night(served, NIGHTS[1]).version == 3


def test_two_nights_take_turns(served):
    with child(lambda: night(served, NIGHTS[0])) as pid:
        while not (served/'versions').exists(): time.sleep(.001)
        with pytest.raises(SaveError, match='another program is writing'): night(served, NIGHTS[1], wait=0)
        assert night(served, NIGHTS[1]).version == 3
        assert status(pid) == 0
    assert len(CollabLearner.from_pretrained(served).seen) == 2500


def test_the_command(served, tmp_path):
    for k, o in enumerate(NIGHTS): o.to_csv(tmp_path/f'{k}.csv', index=False)
    lists = tmp_path/'lists.parquet'
    code, out, err = run('night', served, tmp_path/'0.csv', '--time', 'time', '--recommend', lists, '--k', 3, '--json')
    assert (code, json.loads(out)['verdict'], err) == (0, 'promoted', '')
    df = pd.read_parquet(lists)
    assert not len(df.merge(DF[:2250], on=['user', 'item'])) and df.groupby('user').size().max() == 3
    pd.DataFrame({'item': DF['item'].unique(), 'title': 'The <Third> Man'}).to_csv(tmp_path/'titles.csv', index=False)
    page = ['--html', tmp_path/'page.html', '--titles', tmp_path/'titles.csv']
    assert run('night', served, tmp_path/'1.csv', *page)[0] == 0
    assert 'The &lt;Third&gt; Man' in (tmp_path/'page.html').read_text()
    assert run('rollback', served)[0] == 0
    code, out, err = run('night', served, tmp_path/'0.csv')
    assert (code, err.count('\n')) == (1, 1) and out.startswith('refused: ') and 'version 2 is served' in out
    (tmp_path/'odd.csv').write_text('who,what\n1,2\n')
    for words in (['night', tmp_path/'none', tmp_path/'1.csv'], ['rollback', tmp_path/'none'],
                  ['forget', tmp_path/'none', '--users', 'a']):
        assert run(*words)[0] == 2 and not (tmp_path/'none').exists()
    code, out, err = run('night', served, tmp_path/'odd.csv')
    assert (code, out) == (2, '') and "no columns ['user', 'item']" in err
    assert run('night', served, tmp_path/'1.csv', '--limits', 'max_errors=3')[0] == 2
    assert run('rollback', served)[:2] == (0, 'version 1 is served\n')
    assert run('history', served)[1].count('\n') == 5
    assert run('forget', served)[0] == 2 and run('forget', served, '--users', 'user-00003')[0] == 0


def test_a_rollback_on_a_full_disk_says_so(served, monkeypatch):
    night(served, NIGHTS[0])
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(versions, 'replace_file', full)
    with pytest.raises(SaveError, match='version 1 is not served .*No space left.* still there'): rollback(served)
    assert served_version(served) == 2


def test_versions_that_were_removed_by_hand(served):
    for o in NIGHTS[:3]: night(served, o)
    shutil.rmtree(served/'versions/00004')
    said = '00004: no such folder.*`collab-pretrained rollback .*` serves'
    for f in (CollabLearner.from_pretrained, lambda o: night(o, NIGHTS[3])):
        with pytest.raises(CheckpointError, match=said): f(served)
    assert rollback(served) == 3 and night(served, NIGHTS[2]).version == 5
    shutil.rmtree(served/'versions')
    with pytest.raises(CheckpointError, match=r'expected an earlier one.*\(kept: none\)'): rollback(served)
    trained(served)
    assert night(served, NIGHTS[0]).version == 2
    assert history(served).served.tolist() == [False]*5 + [True]  # not the version 2 of before


def test_reports_that_are_none(served, tmp_path):
    night(served, NIGHTS[0])
    for text in ('{', '[]', '{"when": 3}', '{"verdict": "promoted"}'):
        (served/'reports/odd.json').write_text(text)
        with pytest.warns(CollabWarning, match='odd.json: left out, since it is no report'): found = history(served)
        assert len(found) == 2
        code, out, err = run('history', served)
        assert code == 0 and out.count('\n') == 3 and 'collab-pretrained: warning' in err and 'odd.json' in err
    with pytest.warns(CollabWarning): assert forget(served, [FIRST.user.iloc[0]]).n_users == 1


def test_forgetting_nobody_keeps_all_versions(served):
    night(served, pd.concat([NIGHTS[0], NIGHTS[0][:1].assign(user='new')]))
    before = served_files(served)
    done = forget(served, ['nobody'])
    assert (done.version, done.removed, done.n_unknown) == (2, [], 1) and served_files(served) == before
    rollback(served)
    assert forget(served, ['new']).removed == [1, 2]  # who is in version 2 alone


def test_what_follows_a_night_is_tried_before_it(served, tmp_path):
    "A page that can't be written and titles that can't be read are said before anything is taken in."
    NIGHTS[0].to_csv(tmp_path/'0.csv', index=False)
    before = content(tmp_path)
    (tmp_path/'one.csv').write_text('item\n1\n')
    for options in (['--html', served], ['--html', tmp_path/'x.html', '--titles', tmp_path/'none.csv'],
                    ['--html', tmp_path/'x.html', '--titles', tmp_path/'one.csv'], ['--seed', '-1'], ['--now', 'nan']):
        code, out, err = run('night', served, tmp_path/'0.csv', *options)
        assert (code, out, err.count('\n')) == (2, '', 1), err
    (tmp_path/'one.csv').unlink()
    assert content(tmp_path) == before
    for name in ('plot', 'plot.txt'):
        code, out, err = run('history', served, '--plot', tmp_path/name)
        assert code == 2 and 'expected a picture: .png, .svg or .pdf' in err and not (tmp_path/name).exists()


def test_long_lists(served):
    "Lists longer than the catalogue take no more memory."
    report = night(served, NIGHTS[0], k=100_000)
    assert report.lists['k'] == 100_000 and 0 < report.lists['overlap'] < .01


def test_a_file_that_was_cut_short(served, tmp_path):
    "Its last line has no end, unlike those of the nights before; once it is whole, the rest is taken in."
    for k, o in enumerate(NIGHTS): o.to_csv(tmp_path/f'{k}.csv', index=False)
    for k in range(3): assert run('night', served, tmp_path/f'{k}.csv')[0] == 0
    path, raw = tmp_path/'3.csv', (tmp_path/'3.csv').read_bytes()
    path.write_bytes(raw[:raw.index(b'\n', len(raw)//2) - 1])
    code, out, err = run('night', served, path)
    assert code == 1 and 'last line: 1 of the files end in the middle of a line' in err
    assert run('night', served, path, '--limits', 'max_cut=1')[0] == 0
    path.write_bytes(raw)
    assert run('night', served, path)[0] == 0
    learn = CollabLearner.from_pretrained(served)
    pairs = np.stack([v.rows(DF[col]) for col, v in learn.vocab.items()], 1)
    assert learn.evidence().has(pairs).all()


def test_options_of_the_command(served, tmp_path):
    for k, o in enumerate(NIGHTS): o.to_csv(tmp_path/f'{k}.csv', index=False)
    options = ['--time', 'time', '--hold-out', 'user_time', '--valid-pct', .1, '--max-loss', .5, '--keep', 1,
               '--export', tmp_path/'vectors']
    for k in (0, 1): assert run('night', served, tmp_path/f'{k}.csv', *options)[0] == 0
    vectors = pd.read_parquet(tmp_path/'vectors'/'users.parquet')
    users = CollabLearner.from_pretrained(served).vocab['user']
    assert len(vectors) == len(users.ids) and versions_of(served) == [3]
    report = json.loads(sorted(served.glob('reports/*.json'))[-1].read_bytes())
    assert report['compared'][0]['n'] <= 25
    status, _, err = run('night', served, tmp_path/'2.csv', '--hold-out', 'newest')
    assert status == 2 and '--hold-out' in err and versions_of(served) == [3], err
    pd.DataFrame({'item': ['item-01']}).to_parquet(tmp_path/'ids.parquet')
    for name, words in (('ids.parquet', '1 columns; expected two'), ('none.csv', 'no such file')):
        options = ['--html', tmp_path/'page.html', '--titles', tmp_path/name]
        status, _, err = run('night', served, tmp_path/'2.csv', *options)
        assert status == 2 and f'{name}: {words}' in err and versions_of(served) == [3]


def test_what_cannot_be_written_leaves_all_as_it_was(served, tmp_path, monkeypatch):
    "Lists, vectors and a delta are whole before the model is switched, so that none of them is of another model."
    outputs = {'recommend': tmp_path/'out/lists.csv', 'export': tmp_path/'out/vectors', 'delta': tmp_path/'out/delta'}
    night(served, NIGHTS[0], **outputs)
    before = content(tmp_path)
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    writers = ((pd.DataFrame, 'to_csv'), (pq, 'ParquetWriter'), (module, 'delta_between'), (torch.Tensor, 'numpy'))
    for target, name in writers:
        with monkeypatch.context() as m:
            m.setattr(target, name, full)
            with pytest.raises((OSError, SaveError), match='No space left') as said: night(served, NIGHTS[1], **outputs)
            assert str(said.value).count('not written') <= 1
        assert content(tmp_path) == before
    assert night(served, NIGHTS[1], **outputs, keep=1).version == 3
    (tmp_path/'folder').mkdir()
    with pytest.raises(SaveError, match='a folder, where a file'): night(served, NIGHTS[2], recommend=tmp_path/'folder')
    assert served_version(served) == 3


def test_a_delta_of_a_night_is_followed_and_forgotten(served, tmp_path):
    night(served, NIGHTS[0])
    copy = Path(shutil.copytree(served/'versions/00002', tmp_path/'copy'))
    night(served, NIGHTS[1], delta=tmp_path/'delta', keep=1)
    apply_delta(copy, tmp_path/'delta')
    assert content(copy) == content(served/'versions/00003')
    done = forget(served, [FIRST.user.iloc[0]])
    assert done.deltas == [str(tmp_path/'delta')] and 'copies that follow it' in str(done)
    assert not (tmp_path/'delta').exists()


def test_a_model_below_its_floor_is_said_to_be(tmp_path):
    "Vectors of noise make a model worse than biases alone, which the folder knows without the old ratings."
    learn = CollabLearner.from_pretrained(trained(tmp_path/'model'))
    good = night(tmp_path/'model', NIGHTS[0]).compared[0]
    with torch.no_grad():
        rng = torch.Generator().manual_seed(0)
        for w in (learn.model.u_weight.weight, learn.model.i_weight.weight): w.normal_(0, 1.5, generator=rng)
    unchecked = dict.fromkeys(['max_suspicion', 'min_item_fit', 'min_user_fit', 'max_error'])
    bad = night(learn.save_pretrained(tmp_path/'bad'), NIGHTS[0], limits=unchecked)
    assert not good.below and bad.compared[0].below and bad.compared[0].after > bad.compared[0].floor
    assert 'worse than that beyond chance' in str(bad) and bad.to_dict()['compared'][0]['below']


def test_few_users_have_wide_intervals():
    def interval(n_users, shift, seed=0, n=200):
        rng = np.random.default_rng(seed)
        before = pd.DataFrame({'rmse': rng.normal(0, 1, n)**2}, np.arange(n) % n_users)
        return compare(before, before*(1 + shift) + rng.normal(0, .1, (n, 1)), None, np.ones(n, dtype=bool))
    def width(n_users): return np.mean([o.high - o.low for k in range(20) for o in interval(n_users, 0, k)[:1]])
    assert is_worse(interval(5, .3)) and is_worse(interval(3, .5)) and not is_worse(interval(2, 5.))
    assert width(3) > 1.5*width(9) > 1.5*width(100)


def test_a_clock_of_the_past(served):
    "With `now`, a night of long ago is judged as it would have been then."
    late = NIGHTS[0].assign(time=1_300_000_000 + np.arange(250))
    early = night(served, late, time='time', now=1_300_000_000 - 3*86_400)
    assert early.reason.startswith('clock: the newest rating lies 3.0')
    assert night(served, late, time='time', now=1_300_003_600).verdict == 'promoted'


def test_nights_stand_in_their_order_whatever_the_clock_says(served, monkeypatch):
    days = iter(['2099-03-04', '2099-03-03', '2099-03-02'])  # a clock that is set back
    monkeypatch.setattr(module, 'utc', lambda: f'{next(days)}T02:00:00.000+00:00')
    for o in NIGHTS[:3]: night(served, o)
    assert history(served).version.tolist() == [1, 2, 3, 4] and history(served).served.tolist() == [False]*3 + [True]


@pytest.mark.parametrize('odd', [
    {'lineage': None}, {'lineage': [1]}, {'lineage': [{'version': 1}]}, {'folder': None}, {'folder': '../x'},
    {'newest': 'x'}, {'files': 5}, {'lineage': [{'when': '1', 'verdict': 'x', 'version': 1, 'profile': {'mean': ''}}]}],
    ids=str)
def test_what_is_said_of_versions_is_checked(served, odd):
    night(served, NIGHTS[0])
    (served/'config.json').write_bytes(config_bytes({**read_facts(served), **odd}))
    for command in (['history'], ['rollback'], ['forget', '--users', 'user-00001']):
        status, out, err = run(command[0], served, *command[1:])
        assert (status, out, err.count('\n')) == (2, '', 1) and 'config.json: ' in err and 'Traceback' not in err


def test_one_rating_ahead_of_the_clock_makes_no_night_late(served):
    ahead = NIGHTS[0].assign(time=np.where(np.arange(250) == 7, NIGHTS[2].time.max(), NIGHTS[0].time))
    assert not night(served, ahead, time='time', now=float(NIGHTS[0].time.max())).reason
    assert not night(served, NIGHTS[1], now=float(NIGHTS[1].time.max())).reason
