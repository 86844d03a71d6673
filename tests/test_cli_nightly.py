"A week of a nightly job, over real files and in processes of its own."
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import content

from collab_pretrained.core import planted_ratings
from collab_pretrained.weights.folders import read_folder

COMMAND = Path(sys.executable).with_name('collab-pretrained')
pytestmark = pytest.mark.skipif(
    not COMMAND.exists(), reason='the package is not installed in this environment: `make test` installs it'
)


def run(*argv, cwd):
    "A finished process; whatever it says to standard error is lines for people, never a traceback."
    res = subprocess.run([COMMAND, *map(str, argv)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert 'Traceback' not in res.stderr, res.stderr
    return res


def vocab(folder): return [set(o) for o in read_folder(folder)[1].values()]


@pytest.fixture(scope='module')
def week(tmp_path_factory):
    """A folder with two nights' ratings of changed users and items, whose ids are text that looks like numbers, and the
    model after each night."""
    folder = tmp_path_factory.mktemp('week')
    df = planted_ratings(n_users=80, n_items=50, n_ratings=3000)
    df[['user', 'item']] = df[['user', 'item']].map('{:05d}'.format)
    monday, tuesday = (df[df.period == o][['user', 'item', 'rating', 'time']] for o in ('early', 'late'))
    monday.to_csv(folder/'monday.csv', index=False)
    tuesday.to_parquet(folder/'tuesday.parquet', index=False)
    nights = [
        run('train', 'monday.csv', 'model', '--text-ids', '--time', 'time', '--n-factors', 8, '--epochs', 2, cwd=folder)
    ]
    shutil.copytree(folder/'model', folder/'monday')
    nights.append(run('update', 'model', 'tuesday.parquet', '--old', 'monday.csv', '--min-overlap', .5, cwd=folder))
    return folder, monday, tuesday, nights


def test_day_one_trains(week):
    folder, monday, _, (night, _) = week
    assert night.returncode == 0 and night.stdout.endswith('saved: model\n')
    assert 'epoch 2 of 2: rmse' in night.stderr and 'epoch' not in night.stdout.replace('after 2 epochs', '')
    assert vocab(folder/'monday') == [{'#na#', *monday.user}, {'#na#', *monday['item']}]


def test_day_two_updates_yesterdays_folder(week):
    folder, monday, tuesday, (_, night) = week
    assert night.returncode == 0 and f'{len(tuesday)} new ratings' in night.stdout
    assert set(tuesday.user) - set(monday.user) and set(monday['item']) - set(tuesday['item'])
    assert vocab(folder/'model') == [{'#na#', *monday[o], *tuesday[o]} for o in ('user', 'item')]
    assert content(folder/'model').keys() >= {'config.json', 'model.safetensors', 'seen.safetensors', 'vocab.json'}


def test_day_three_cannot_read_and_leaves_yesterdays_model(week):
    folder = week[0]
    before = content(folder/'model')
    (folder/'torn.parquet').write_bytes((folder/'tuesday.parquet').read_bytes()[:-40])
    night = run('update', 'model', 'torn.parquet', cwd=folder)
    assert (night.returncode, night.stdout, night.stderr.count('\n')) == (2, '', 1)
    assert night.stderr.startswith('collab-pretrained: torn.parquet: ')
    assert content(folder/'model') == before


def test_strangers_fall_short(week):
    folder = week[0]
    before = content(folder/'model')
    pd.DataFrame({'user': ['a', 'b'], 'item': ['00001', 'c'], 'rating': 3}).to_csv(folder/'strangers.csv', index=False)
    night = run('update', 'model', 'strangers.csv', '--min-overlap', .5, cwd=folder)
    assert night.returncode == 1 and night.stderr.splitlines()[-1].startswith(
        'collab-pretrained: 0.0% of the users have a row in the model'
    )
    assert content(folder/'model') == before


def test_lists_can_be_read_back(week):
    folder, monday, tuesday, _ = week
    night = run('recommend', 'monday', '--ratings', 'tuesday.parquet', '--k', 3, '--out', 'lists.csv', cwd=folder)
    assert (night.returncode, night.stdout) == (0, '')
    lists = pd.read_csv(folder/'lists.csv', dtype={'user': str, 'item': str})
    seen, items = pd.concat([monday, tuesday])[['user', 'item']].drop_duplicates(), set(monday['item'])
    n_left = (len(items) - seen[seen['item'].isin(items)].groupby('user').size())[tuesday.user.unique()]
    assert lists.groupby('user').size().to_dict() == n_left[n_left > 0].clip(upper=3).to_dict()
    assert set(lists['item']) <= items
    assert lists.groupby('user')['rank'].apply(list).map(lambda o: o == [1, 2, 3][:len(o)]).all()
    assert lists.groupby('user').score.apply(lambda o: o.is_monotonic_decreasing).all()
    assert not len(lists.merge(seen, on=['user', 'item']))
