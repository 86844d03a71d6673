"What the command line promises, in processes of its own: exit statuses, closed pipes, locks, words, and what was seen."
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from helpers import content, run

from collab_pretrained.cli import DESCRIPTIONS, MODULES
from collab_pretrained.core import planted_ratings
from collab_pretrained.data.loaders import CollabDataLoaders
from collab_pretrained.learner.factory import collab_learner

MODULE = [sys.executable, '-m', 'collab_pretrained']


def command_of(name):
    return getattr(import_module(f'collab_pretrained.cli.{MODULES.get(name, "commands")}'), f'cli_{name}')


def refused(*argv):
    "The one line of a command that can't use its input."
    status, out, err = run(*argv)
    assert (status, out, err.count('\n')) == (2, '', 1), (status, out, err)
    return err


@pytest.fixture(scope='module')
def nights(tmp_path_factory):
    "A folder with two nights' tables and the model of the first."
    folder = tmp_path_factory.mktemp('nights')
    df = planted_ratings(n_users=60, n_items=50, n_ratings=2000, seed=2)
    for day, period in (('monday', 'early'), ('tuesday', 'late')):
        df[df.period == period][['user', 'item', 'rating']].to_csv(folder/f'{day}.csv', index=False)
    assert run('train', folder/'monday.csv', folder/'monday', '--n-factors', 4, '--epochs', 1)[0] == 0
    return folder


@pytest.fixture
def night(nights, tmp_path, monkeypatch):
    "A copy of it, in which the test works."
    subprocess.run(['cp', '-r', f'{nights}/.', tmp_path], check=True)
    (tmp_path/'monday').rename(tmp_path/'model')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_and_version_without_torch():
    code = ("import sys; from collab_pretrained.cli import main; main(['--help']); main(['--version']); "
            "assert 'torch' not in sys.modules")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.startswith('usage: collab-pretrained COMMAND') and 'collab-pretrained 0' in out
    assert {k: command_of(k).__doc__ for k in DESCRIPTIONS} == DESCRIPTIONS
    assert subprocess.run([*MODULE, '--version'], capture_output=True, text=True, check=True).stdout in out


def test_a_command_imports_no_more_of_fastai_than_it_uses(night):
    code = ("import sys; from collab_pretrained.cli import main; sys.argv = ['', 'update', 'model', 'monday.csv']; "
            "assert main() == 0; print({'fasthtml', 'matplotlib', 'requests', 'scipy', 'sklearn'} & set(sys.modules))")
    assert subprocess.check_output([sys.executable, '-c', code], text=True).endswith('set()\n')


@pytest.mark.parametrize('output', ['| true', '>&-', '2>&1 | true'])
def test_work_is_done_whatever_becomes_of_the_output(night, output):
    def status(*argv):
        line = f'PYTHONUNBUFFERED=1 {" ".join([*MODULE, *argv])} {output}; exit ${{PIPESTATUS[0]}}'
        return subprocess.run(['bash', '-c', line], capture_output=True).returncode
    Path('new.csv').write_text('user,item,rating\n1,1,1\n999,2,3\n')
    before = content(night/'model')
    assert status('update', 'model', 'tuesday.csv') == 0 and content(night/'model') != before
    if output == '| true': assert status('match', 'model', 'new.csv', '--min-overlap', '1') == 1
    if output == '2>&1 | true':
        for argv in (['night', 'model', 'new.csv'], ['history', 'model'], ['rollback', 'model']):
            assert status(*argv) == 0


def test_output_that_cant_encode_an_id(night):
    df = pd.read_csv('monday.csv').assign(item=lambda o: '中' + o['item'].astype(str))
    df.to_csv('chinese.csv', index=False)
    env = {**os.environ, 'PYTHONIOENCODING': 'ascii'}
    train = [*MODULE, 'train', 'chinese.csv', 'chinese', '--epochs', '1', '--n-factors', '2']
    assert subprocess.run(train, env=env, capture_output=True).returncode == 0
    assert (night/'chinese/config.json').exists()
    ask = [*MODULE, 'recommend', 'chinese', '--users', '1', '--allow-seen']
    done = subprocess.run(ask, env=env, capture_output=True, text=True)  # what it prints is its work
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'Traceback' not in done.stderr


def test_ids_that_are_no_text_to_this_shell(night):
    pd.read_csv('monday.csv').assign(user=lambda o: 'ü' + o['user'].astype(str)).to_csv('text.csv', index=False)
    assert run('train', 'text.csv', 'text', '--epochs', 1, '--n-factors', 2)[0] == 0
    assert "--users '\\udcc3\\udcbc1': no text" in refused('recommend', 'text', '--users', '\udcc3\udcbc1')


def test_every_line_of_a_table_is_accounted_for(night):
    "Scripts read these numbers, so their words stay."
    status, out, _ = run('train', 'monday.csv', 'counted', '--epochs', 1, '--n-factors', 2)
    n_train, n_valid = re.findall(r'^(\d+) ratings train, (\d+) validate; \d+ users', out, re.MULTILINE)[0]
    assert status == 0 and int(n_train) + int(n_valid) == len(pd.read_csv('monday.csv'))


def test_the_current_folder_is_gone(night):
    script = 'mkdir gone && cd gone && rmdir ../gone && "$@"'
    done = subprocess.run(['sh', '-c', script, 'sh', *MODULE, 'inspect', night], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('collab-pretrained: the current folder was deleted')


def test_ctrl_c_is_one_line(night):
    with subprocess.Popen([*MODULE, 'train', 'monday.csv', 'new', '--epochs', '100000', '--n-factors', '4'],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()  # the first epoch is over
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in err
    assert err.splitlines()[-1] == 'collab-pretrained: interrupted' and not (night/'new').exists()


def test_ctrl_c_after_the_work_changes_nothing(night):
    with subprocess.Popen([*MODULE, 'train', 'monday.csv', 'done', '--n-factors', '4'], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        while 'saved: ' not in process.stdout.readline(): pass
        time.sleep(.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and 'Traceback' not in err and (night/'done').exists()


def test_two_updates_at_once_lose_nothing(night):
    df = pd.read_csv('monday.csv')[:200]
    for k in (1000, 2000): df.assign(user=df.user + k).to_csv(f'{k}.csv', index=False)
    both = [subprocess.Popen([*MODULE, 'update', 'model', f'{k}.csv'], stdout=subprocess.DEVNULL) for k in (1000, 2000)]
    assert [o.wait() for o in both] == [0, 0]
    out = run('match', 'model', '1000.csv', '--min-overlap', 1), run('match', 'model', '2000.csv', '--min-overlap', 1)
    assert [o[0] for o in out] == [0, 0]


def test_a_writer_that_is_busy_is_waited_for(night):
    from collab_pretrained.core import one_writer
    with one_writer('model'):
        began = time.monotonic()
        assert 'another program is writing to it' in refused('update', 'model', 'tuesday.csv', '--wait', '.2')
        assert time.monotonic() - began < 5


def test_a_base_that_another_program_saved_is_not_overwritten(night, monkeypatch):
    from collab_pretrained.learner.core import CollabLearner
    update = CollabLearner.update

    def interfere(self, *args, **kwargs):
        res = update(self, *args, **kwargs)
        CollabLearner.from_pretrained('model').save_pretrained(Path('model').resolve())
        Path('model/config.json').write_text(Path('model/config.json').read_text() + ' ')
        return res
    monkeypatch.setattr(CollabLearner, 'update', interfere)
    status, out, err = run('update', 'model', 'tuesday.csv')
    assert status == 2 and 'another program has saved a model there' in err and 'saved:' not in out


def test_nobody_is_recommended_what_they_rated(night):
    assert run('update', 'model', 'tuesday.csv', '--min-overlap', .3)[0] == 0
    status, _, err = run('recommend', 'model', '--ratings', 'tuesday.csv', '--out', 'lists.csv')  # the README's recipe
    lists = pd.read_csv('lists.csv')
    assert (status, err) == (0, '')
    for day in ('monday', 'tuesday'): assert not len(lists.merge(pd.read_csv(f'{day}.csv'), on=['user', 'item']))


def test_a_model_without_a_record_of_what_was_seen_says_so(night):
    from collab_pretrained.learner.core import CollabLearner
    CollabLearner.from_pretrained('model').save_pretrained(Path('bare').resolve(), seen=False)
    assert '--allow-seen' in refused('recommend', 'bare')
    status, _, err = run('recommend', 'bare', '--ratings', 'tuesday.csv', '--out', 'lists.csv')
    assert status == 0 and 'seen is not all known' in err
    status, _, err = run('recommend', 'bare', '--history', 'monday.csv', '--out', 'lists.csv')
    assert (status, err) == (0, '')
    assert not len(pd.read_csv('lists.csv').merge(pd.read_csv('monday.csv'), on=['user', 'item']))
    assert run('recommend', 'bare', '--allow-seen')[0] == 0


def test_clicks_are_ranked(night):
    pd.read_csv('monday.csv')[['user', 'item']].to_csv('clicks.csv', index=False)
    for argv in (['monday.csv', 'a', '--implicit'], ['clicks.csv', 'b', '--implicit']):
        status, out, _ = run('train', *argv, '--epochs', 1, '--n-factors', 4)
        assert status == 0 and 'recall@10' in out and 'popularity alone' in out
        assert "'kind': 'softmax'" in run('inspect', argv[1])[1] and 'liked: ' in run('inspect', argv[1])[1]


@pytest.mark.parametrize('argv', [
    ('--n-factors', '1e12'), ('--n-factors', '1000000000000'), ('--epochs', '1_0'), ('--k', '٣'), ('--lr', 'nan'),
    ('--pretrained', ''), ('--user', ''), ('--sep', ''), ('--decimal', ',,'), ('--quoting', 'odd'),
    ('--on-missing', 'fill'), ('--encoding', 'klingon'), ('--seed', '9'*5000),
])
def test_options_that_mean_nothing(night, argv):
    err = refused('train', 'monday.csv', 'new', *argv)
    assert argv[0] in err and not (night/'new').exists()


@pytest.mark.parametrize('users', ['1_0', '١', '+1', '01', '9'*5000, '', 'ann', '1,,2', '1.0'])
def test_ids_match_exactly(night, users):
    assert '--users' in refused('recommend', 'model', '--allow-seen', '--users', users)


def test_files_that_cant_be_used(night):
    import bz2
    import gzip
    import lzma
    whole = Path('monday.csv').read_bytes()
    for ending, pack in (('gz', gzip.compress), ('bz2', bz2.compress), ('xz', lzma.compress)):
        Path(f'cut.csv.{ending}').write_bytes(pack(whole)[:-30])
        Path(f'no.csv.{ending}').write_bytes(b'not at all')
    Path('no.csv.zip').write_bytes(b'PK and no more')
    Path('no.nul.csv').write_bytes(whole[:-40] + bytes(40))  # written while the machine went down
    Path('header.csv').write_text('user,item,rating\n')
    Path('empty.csv').write_text('')
    for path in [*Path().glob('cut.*'), *Path().glob('no.*'), *map(Path, ('header.csv', 'empty.csv', 'nowhere.csv'))]:
        assert str(path) in refused('train', path, 'new')
        assert str(path) in refused('recommend', 'model', '--ratings', path)
        assert str(path) in refused('update', 'model', path)
    digits = '9'*5000
    Path('long.csv').write_text(f'user,item,rating\n{digits},1,3\n')
    assert run('train', 'long.csv', 'new', '--valid-pct', 0, '--epochs', 0)[0] in (0, 2)  # a text like any other
    refused('update', 'model', 'long.csv')


def test_odd_tables_are_read_with_the_options_that_errors_name(night):
    df = pd.read_csv('monday.csv').astype(str)
    text = '\n'.join([';'.join(df.columns), *(';'.join(o) for o in df.assign(rating=df.rating.str.replace('.', ','))
                                             .itertuples(index=False))])
    Path('odd.csv').write_text(text.replace('user;', 'usér;'), encoding='latin-1')
    assert '--encoding' in refused('train', 'odd.csv', 'new')
    assert '--sep' in refused('train', 'odd.csv', 'new', '--encoding', 'latin-1')
    options = ['--encoding', 'latin-1', '--sep', ';', '--columns', 'user,item,rating', '--decimal', ',']
    for command in (['train', 'odd.csv', 'new', '--epochs', 1, '--n-factors', 2], ['update', 'model', 'odd.csv'],
                    ['evaluate', 'model', 'odd.csv'], ['match', 'model', 'odd.csv'],
                    ['recommend', 'model', '--ratings', 'odd.csv', '--out', 'lists.csv']):
        assert run(*command, *options)[0] == 0
    Path('bare.csv').write_text('\n'.join(','.join(o) for o in df.itertuples(index=False)))
    assert '--no-header' in refused('train', 'bare.csv', 'new')
    assert run('update', 'model', 'bare.csv', '--no-header', '--columns', 'user,item,rating')[0] == 0


def test_files_that_are_not_what_their_names_say(night):
    df = pd.read_csv('monday.csv')
    df.to_parquet('a.csv')
    df.to_csv('b.csv.gz', index=False)
    Path('b.csv.gz').rename('b.csv')
    assert 'begins like a .parquet file' in refused('train', 'a.csv', 'new')
    assert 'begins like a .gz file' in refused('train', 'b.csv', 'new')


def test_users_in_the_index_of_a_parquet_file_come_first(night):
    df = pd.read_csv('monday.csv')
    df.set_index(['user', 'item']).to_parquet('indexed.parquet')
    status, _, err = run('train', 'indexed.parquet', 'new', '--rounds', 1, '--n-factors', 2)
    assert status == 0 and 'taken for' not in err and "items: column 'item'" in run('inspect', 'new')[1]


def test_a_column_twice_in_the_first_line_is_said(night):
    Path('twice.csv').write_text('user,item,rating,rating\n1,2,3,5\n2,3,4,1\n')
    status, _, err = run('train', 'twice.csv', 'new', '--rounds', 1, '--n-factors', 2)
    assert status == 0 and "'rating' is twice in the first line" in err


def test_missing_ids_and_ids_called_na(night):
    df = pd.DataFrame({'user': ['NA', 'b', 'c']*20, 'item': ['None', 'x', 'y']*20, 'rating': [1, 2, 3]*20})
    df.to_csv('na.csv', index=False)
    err = refused('train', 'na.csv', 'new', '--epochs', 1, '--n-factors', 2)
    assert '--na-values' in err and '--on-missing drop' in err
    options = ['--epochs', 1, '--n-factors', 2, '--duplicates', 'keep']
    assert run('train', 'na.csv', 'new', *options, '--na-values', '')[0] == 0
    assert "'NA'" in run('inspect', 'new')[1]
    assert run('train', 'na.csv', 'less', *options, '--on-missing', 'drop')[0] == 0
    assert "'NA'" not in run('inspect', 'less')[1]


def test_no_file_is_left_behind(night):
    run('recommend', 'model', '--allow-seen', '--out', 'lists.csv')
    run('export', 'model', 'vectors')
    assert not [o for o in night.rglob('*') if o.name.endswith('.part')]
    assert len(pd.read_parquet('vectors/users.parquet')) == pd.read_csv('monday.csv').user.nunique()


def test_tables_without_a_header(night):
    for name, sep in (('a.dat', '::'), ('a.data', '\t'), ('a.csv', ',')):
        rows = pd.read_csv('monday.csv').astype(str).itertuples(index=False)
        Path(name).write_text('\n'.join(map(sep.join, rows)) + '\n')
        assert '--no-header' in refused('train', name, 'new')
        for columns in ([], ['--user', 0, '--item', 1, '--rating', 2]):
            assert run('train', name, 'new', '--no-header', '--rounds', 1, '--n-factors', 2, *columns)[0] == 0
            assert run('update', 'new', name, '--no-header')[0] == 0
    assert "no user column '7'" in refused('train', 'a.csv', 'new', '--no-header', '--user', 7)


def test_files_of_other_kinds_name_what_reads_them(night):
    Path('two.csv').write_text('user,item\n1,2\n')
    assert '--implicit' in refused('train', 'two.csv', 'new')
    for name in ('lib.svm', 'lib.txt', 'lib.csv', 'lib'):
        Path(name).write_text('1 1:5 2:3\n2 3:1\n')
        for command in (['train', name, 'new'], ['update', 'model', name], ['match', 'model', name]):
            assert 'LibSVM' in refused(*command) and 'convert' in refused(*command)


def test_how_a_table_was_read_travels_with_the_model(night):
    df = pd.read_csv('monday.csv').assign(user=lambda o: 'U' + o.user.astype(str).str.zfill(4))
    rows = df.astype(str).assign(rating=lambda o: o.rating.str.replace('.', ','))
    def write(name, rows): Path(name).write_text('\n'.join(map('::'.join, rows.itertuples(index=False))), 'utf-16')
    write('first.dat', rows)
    options = ['--sep', '::', '--no-header', '--columns', 'user,item,rating', '--encoding', 'utf-16', '--decimal', ',']
    small = ['--rounds', 1, '--n-factors', 2]
    assert run('train', 'first.dat', 'new', *options, '--id-cast', 'lower', *small)[0] == 0
    assert "read with: --sep '::' " in run('inspect', 'new')[1] and "'u0001'" in run('inspect', 'new')[1]
    write('next.dat', rows.assign(user=rows.user.str.replace('U00', 'U1')))
    status, out, _ = run('update', 'new', 'next.dat')
    assert status == 0 and f'{df.user.nunique()} new users' in out
    for command in (['evaluate', 'new', 'next.dat'], ['match', 'new', 'next.dat', '--min-overlap', 1],
                    ['recommend', 'new', '--ratings', 'next.dat', '--users', 'U0001', '--out', 'lists.csv']):
        assert run(*command)[0] == 0
    assert set(pd.read_csv('lists.csv').user) == {'u0001'}
    df[['rating', 'item', 'user']].to_parquet('swapped.parquet')  # says itself what its columns are
    assert run('match', 'new', 'swapped.parquet', '--min-overlap', 1)[0] == 0
    df[['rating', 'item', 'user']].to_csv('swapped.csv', index=False)
    plain = ['--sep', ',', '--header', '--encoding', 'utf-8', '--decimal', '.']
    assert 'another place' in refused('match', 'new', 'swapped.csv', *plain)  # nothing is renamed to what it isn't
    assert '--id-cast' in refused('train', 'monday.csv', 'other', '--id-cast', 'upper')


def test_a_tab_may_be_written(night):
    Path('log').write_text('user\titem\trating\n1\t"open\t3\n2\tshut"\t4\n')
    for sep in ('\t', r'\t', 'tab'):
        assert run('train', 'log', 'new', '--sep', sep, '--rounds', 1, '--n-factors', 2)[0] == 0
        assert "items: column 'item', Vocab of 2 text" in run('inspect', 'new')[1]


def test_items_to_choose_from_and_to_leave_out(night):
    ask = ['recommend', 'model', '--users', '1,2', '--out', 'lists.csv', '--k', 99]
    assert run(*ask)[0] == 0
    free = pd.read_csv('lists.csv')
    some = free[free.user == 1]['item'].head(3).tolist()
    Path('some.csv').write_text('item\n' + '\n'.join(map(str, [*some, 777777])))
    for option, left in (('--candidates', lambda o: o.isin(some)), ('--exclude', lambda o: ~o.isin(some))):
        status, _, err = run(*ask, option, 'some.csv')
        assert status == 0 and '1 of 4 items have no row (777777)' in err
        assert pd.read_csv('lists.csv').equals(free[left(free['item'])].assign(
            rank=lambda o: o.groupby('user').cumcount() + 1).reset_index(drop=True))
    Path('own.csv').write_text('user,item\n' + '\n'.join(f'1,{o}' for o in some))
    assert run(*ask, '--exclude', 'own.csv')[0] == 0
    lists = pd.read_csv('lists.csv')
    assert set(lists[lists.user == 1]['item']).isdisjoint(some) and (lists.user == 2).sum() == (free.user == 2).sum()
    assert run(*ask, '--candidates', 'own.csv')[0] == 0
    assert pd.read_csv('lists.csv')[['user', 'item']].values.tolist() == [[1, o] for o in some]
    Path('none.csv').write_text('item\n777777\n')
    assert 'no row' in refused(*ask, '--candidates', 'none.csv')
    Path('holes.csv').write_text('user,item\n1,\n')
    assert 'missing' in refused(*ask, '--candidates', 'holes.csv')


def test_no_file_ends_in_a_traceback(night):
    head = 'user,item,rating\n'
    files = {'zeros.csv': (head + '007,2,3\n').encode(), 'digits.csv': (head + '9'*5000 + ',2,3\n').encode(),
             'bare16.csv': (head + '1,2,3\n').encode('utf-16-le'), 'cat.csv': (head + '1,2,3\n' + head).encode(),
             'long.csv': (head + '1,2,3,4\n').encode(), 'null.jsonl': b'{"user": 1, "item": 2, "rating": 3}\nnull\n',
             'nested.jsonl': b'{"user": {"a": 1}, "item": [2], "rating": 3}\n', 'empty.json': b'[]',
             'number.json': b'3', 'no.csv.zst': b'no', 'no.parquet': b'PAR1'}
    for name, raw in files.items(): Path(name).write_bytes(raw)
    os.mkfifo('pipe.csv')
    for path in [*files, 'pipe.csv', 'model']:
        for argv in (['train', path, 'new', '--rounds', 1], ['update', 'model', path], ['match', 'model', path],
                     ['evaluate', 'model', path], ['recommend', 'model', '--ratings', path],
                     ['recommend', 'model', '--history', path], ['recommend', 'model', '--users', path],
                     ['recommend', 'model', '--candidates', path], ['recommend', 'model', '--exclude', path],
                     ['recommend', 'model', '--titles', path]):
            status, _, err = run(*argv)
            said = [o for o in err.splitlines() if ' warning: ' not in o and not o.startswith('epoch')]
            assert status == 2 and len(said) == 1 or status == 0 and not said, (argv, status, err)
            assert len(err) < 2000, argv  # an id of 5,000 digits is not repeated
    assert '--encoding utf-16-le' in refused('update', 'model', 'bare16.csv')
    assert 'among the ids' in refused('recommend', 'model', '--users', 'cat.csv')
    assert 'device' in refused('update', 'model', 'pipe.csv')
    assert '--text-ids' in run('update', 'model', 'zeros.csv')[2]
    status, out, err = run('recommend', 'model', '--users', '777', '--on-unknown', 'skip')
    assert status == 0 and 'no lists' in err


def test_evaluate_says_on_whom_its_figures_are(night):
    tuesday, monday = pd.read_csv('tuesday.csv'), pd.read_csv('monday.csv')
    status, _, err = run('evaluate', 'model', 'tuesday.csv')
    assert status == 0 and '--history' in err
    status, out, _ = run('evaluate', 'model', 'tuesday.csv', '--history', 'monday.csv', '--out', 'figures.csv')
    known = tuesday.user.isin(monday.user) & tuesday['item'].isin(monday['item'])
    counts = next(o for o in out.splitlines() if o.startswith('n_ratings')).split()[1:]
    assert status == 0 and counts == [str(o) for o in (len(tuesday), known.sum(), (~known).sum())]
    assert 'with rows' in out and 'without rows' in out and 'rmse of biases' in out and 'of popular' in out
    assert len(pd.read_csv('figures.csv')) == 3
    assert 'without rows' not in run('evaluate', 'model', 'monday.csv')[1]


def test_a_full_disk_names_the_file(night):
    Path('lists.csv').write_text('as it was')
    line = f"trap '' XFSZ; ulimit -f 1; {' '.join(MODULE)} recommend model --k 30 --out lists.csv"
    done = subprocess.run(['bash', '-c', line], capture_output=True, text=True)
    assert done.returncode == 2 and 'lists.csv: not written' in done.stderr and done.stderr.count('\n') == 1
    assert Path('lists.csv').read_text() == 'as it was' and not list(Path().glob('.*.part*'))


def test_commands_do_not_warn_of_what_fastai_calls(tmp_path):
    command, env = [*MODULE, 'inspect', 'nothing'], {**os.environ, 'PYTHONWARNINGS': 'default'}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and 'torch.jit' not in done.stderr


@pytest.mark.parametrize('sep', ['||', '**', '§', '|~|', r'\s+', '::'])
def test_what_stands_between_columns_is_meant_as_it_stands(night, sep):
    text = Path('monday.csv').read_text()
    Path('other.txt').write_text(text.replace(',', '  ' if sep == r'\s+' else sep))
    status, out, err = run('match', 'model', 'other.txt', '--sep', sep)
    assert (status, err) == (0, '') and out == run('match', 'model', 'monday.csv')[1]


@pytest.mark.parametrize('argv, words', [
    (['train', 'monday.csv', 'x', '--loss', 'likes'], "--loss likes; expected 'bpr', 'warp', 'softmax', 'ials'\n"),
    (['night', 'model', 'monday.csv', '--item-features', 'monday.csv'], 'expected a row for each id\n'),
    (['night', 'model', 'monday.csv', '--forget-after', '1_0'],
     "expected a number of days above 0, or text such as '365d'\n"),
    (['recommend', 'model', '--ratings', ''], '--ratings: empty; expected a value, or no --ratings\n')])
def test_errors_name_no_python(night, argv, words): assert refused(*argv).endswith(words)


@pytest.mark.parametrize('made, argv, words', [
    (dict(use_nn=True), [], "users' vectors of width 16 and items' of 14, as a network has them; expected one width "
     'for a dot product: start from another model'),
    (dict(y_range=(0, 5.5)), ['--loss', 'bpr'], 'it answers between 0 and 5.5, and a ranking has no bounds; expected '
     'a model without them, as --method als makes it, or no --pretrained'),
    (dict(loss='bpr'), ['--loss', 'ials'],
     'descent trained its rows, and they are not solved on; expected --method sgd')])
def test_models_that_train_cannot_start_from(night, made, argv, words):
    learn = collab_learner(CollabDataLoaders.from_csv('monday.csv', seed=1), n_factors=4, **made)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.save_pretrained('other')
    said = refused('train', 'monday.csv', 'new', '--pretrained', 'other', *argv)
    assert said == f'collab-pretrained: other: {words}\n'


def test_a_network_takes_no_newcomers_in(night):
    learn = collab_learner(CollabDataLoaders.from_csv('monday.csv', seed=1), use_nn=True)
    learn.save_pretrained('net')
    Path('new.csv').write_text('user,item,rating\n999,2,3\n')
    assert refused('recommend', 'net', '--ratings', 'new.csv').endswith('expected a dot product with biases\n')
    assert refused('export', 'net', 'vectors').endswith('expected `EmbeddingDotBias`\n')


@pytest.mark.parametrize('sep', [',', ';', '::', '|'])
def test_times_and_titles_in_the_first_line_are_no_other_format(night, sep):
    Path('log.txt').write_text(''.join(sep.join([f'{k % 9}', f'Part {k % 7}', '4.5', '2024-01-01 12:30']) + '\n'
                                       for k in range(60)))
    argv = ['train', 'log.txt', 'new', '--no-header', '--columns', 'who,what,stars,when', '--sep', sep, '--rounds', 1]
    assert run(*argv)[0] == 0
    Path('log.txt').write_text('5 1:1 2:1\n')
    assert "columns=['user', 'item', 'rating'])`" in refused('train', 'log.txt', 'other')


@pytest.mark.parametrize('argv', [
    ['night', 'model', 'tuesday.csv', '--recommend', 'tuesday.csv'],
    ['night', 'model', 'tuesday.csv', '--html', './model/config.json'],
    ['night', 'model', 'tuesday.csv', '--html', 'night', '--delta', 'night'],
    ['recommend', 'model', '--history', 'monday.csv', 'tuesday.csv', '--out', 'link.csv'],
    ['evaluate', 'model', 'tuesday.csv', '--out', 'tuesday.csv'],
    ['match', 'model', 'tuesday.csv', '--out', 'link.csv']])
def test_what_is_read_is_not_written_over(night, argv):
    Path('link.csv').symlink_to('tuesday.csv')
    def files(): return {o: o.read_bytes() for o in night.rglob('*') if o.is_file()}
    before = files()
    assert refused(*argv).endswith('; expected another place to write to\n') and files() == before


def test_files_of_other_programs_stay(night):
    Path('web').mkdir()
    Path('web/config.json').write_text('{"port": 80}')
    Path('data').mkdir()
    Path('data/export-2026').mkdir()
    pd.DataFrame({'user': [1, 2], 'age': [30, 40]}).to_parquet('data/users.parquet')
    for argv in (['train', 'monday.csv', 'web'], ['update', 'model', 'tuesday.csv', '--out', 'web'],
                 ['export', 'model', 'data'], ['night', 'model', 'tuesday.csv', '--export', 'data']):
        assert 'config.json' in (said := refused(*argv)) or 'users.parquet: it is there, and no export' in said
    assert Path('web/config.json').read_text() == '{"port": 80}' and len(list(Path('data').iterdir())) == 2
    Path('data/users.parquet').unlink()
    for _ in range(3): assert run('export', 'model', 'data')[0] == 0  # and removes older exports, and those alone
    assert Path('data/export-2026').is_dir()


def test_files_that_took_the_place_of_a_nights_stay(night):
    assert run('night', 'model', 'tuesday.csv', '--recommend', 'lists.csv', '--delta', 'tonight.delta')[0] == 0
    Path('lists.csv').write_text('movie,stars\n1,2\n')
    mine = Path('tonight.delta').read_bytes()
    Path('tonight.delta').write_text('mine')
    status, out, err = run('forget', 'model', '--users', '1')
    assert status == 0 and 'lists.csv: no lists of this model any more, and left as it is' in err
    assert Path('lists.csv').read_text() == 'movie,stars\n1,2\n' and Path('tonight.delta').read_text() == 'mine'
    Path('tonight.delta').write_bytes(mine[:1000])  # a damaged one
    assert run('forget', 'model', '--users', '2')[0] == 0 and not Path('tonight.delta').exists()


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='needs a folder in which nothing can be written')
@pytest.mark.parametrize('option, name', [
    ('--html', 'a.html'), ('--delta', 'a.delta'), ('--recommend', 'a.csv'), ('--export', 'a')])
def test_a_night_that_cannot_write_what_is_asked_for_serves_the_model_of_before(night, option, name):
    before = (night/'model'/'config.json').read_bytes()
    assert '/proc/' in refused('night', 'model', 'tuesday.csv', option, f'/proc/{name}')
    assert (night/'model'/'config.json').read_bytes() == before
