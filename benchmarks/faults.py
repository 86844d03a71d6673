"""What does a guarded night do with tables that are wrong, and with good ones? And what with a kill, or two at once?

Usage: python benchmarks/faults.py [--data movietweetings ...] [--seed 0] [--out FILE.csv]   (20 minutes; one thread)
       python benchmarks/faults.py --kills [--n 100]   (five minutes)
       python benchmarks/faults.py --days [--out FILE.csv]   (half an hour)

200 nights by the command `night` alone: MovieTweetings in 100 of its days, MovieLens 100K and latest-small in 50
equal parts each (the first and the last from ../shared/data, where it is there), after a first model of the days
before, or of the first half. At nights drawn at random, each data set gets every fault once that its ids can have;
the file is wrong, and the right one follows if it is refused, as it would from whoever is on duty. A second chain
gets the right files only. The clock (`--now`) stands an hour after the newest rating of a night. Printed is what became
of each fault and in which words, the share of good nights that were refused, how many lines of the lists of all users,
which every promoted night writes, name an item that the user has rated, and the RMSE of both chains on every night's
ratings before these are taken in.

--kills: a night is killed at a random moment, `--n` times, while another process reads the model in a loop; then two
nights are started at once. Counted is what readers saw, and whether each night is in the model once.

--days: MovieTweetings by command alone, each in a process of its own: `train` on the first day, then a `night` for each
of the other 251, which writes the lists of all users. Printed are seconds, the most memory, what was refused, the size
of the folder, how many lines of lists name a seen item, and the RMSE of each day before it is taken in, beside that of
`fit_als` on all ratings so far; `--out` gets a line for each night as it ends.
results/faults.csv and results/days.csv have the lines of one run."""

import argparse
import os

for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[name] = '1'
import contextlib  # noqa: E402
import io  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.data.external import URLs, untar_data  # noqa: E402

from collab_pretrained.all import CollabDataLoaders, CollabLearner, collab_learner  # noqa: E402
from collab_pretrained.cli import main as command  # noqa: E402
from collab_pretrained.serve.evaluate import predictions_for  # noqa: E402

COLUMNS = ['user', 'item', 'rating', 'time']
SHARED = Path(__file__).resolve().parents[2]/'shared/data'
N_NIGHTS = {'movietweetings': 100, 'ml-100k': 50, 'ml-latest-small': 50}


def read(name):
    "A real table in order of time; None where it isn't there. MovieTweetings has text ids with leading zeros."
    folder = untar_data(URLs.ML_100k) if name == 'ml-100k' else SHARED/name
    if not folder.is_dir(): return None
    if name == 'ml-100k': df = pd.read_csv(folder/'u.data', sep='\t', names=COLUMNS)
    elif name == 'ml-latest-small': df = pd.read_csv(folder/'ratings.csv').set_axis(COLUMNS, axis=1)
    else: df = pd.read_csv(folder/'ratings.dat', sep='::', engine='python', names=COLUMNS, dtype={'item': str})
    df['time'] = pd.to_numeric(df.time, errors='coerce')  # a damaged line
    return df.dropna().astype({'time': int}).sort_values('time', kind='stable').reset_index(drop=True)


def nights_of(df, name):
    "The ratings before the first night, and those of each night: days of at least 50 ratings, or equal parts."
    if name == 'movietweetings':
        days = [o for _, o in df.groupby(df.time//86400) if len(o) >= 50]
        return pd.concat(days[:-N_NIGHTS[name]]), days[-N_NIGHTS[name]:]
    cuts = np.linspace(len(df)//2, len(df), N_NIGHTS[name] + 1).astype(int)
    return df[:cuts[0]], [df[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def shifted(ids): return ids + 1 if ids.dtype.kind in 'iu' else ids.map(lambda o: str(int(o) + 1).zfill(len(o)))


def permuted(df, tonight):
    "Items of another catalogue, which gives the same numbers to other things."
    ids = np.sort(df['item'].unique())
    other = dict(zip(ids, np.random.default_rng(0).permutation(ids), strict=True))
    return tonight.assign(item=tonight['item'].map(other))


def with_bot(df, tonight):
    items = df['item'].unique()
    n_users = -(-10_000//len(items))  # a pair is rated once
    users = df.user.max() + 1 + np.arange(n_users)
    bot = pd.DataFrame({'user': np.repeat(users, len(items)), 'item': np.tile(items, n_users)})
    return pd.concat([tonight, bot[:10_000].assign(rating=df.rating.max(), time=tonight.time.max())])


def swapped(tonight): return tonight.rename(columns={'user': 'item', 'item': 'user'})[COLUMNS]


TABLES = {  # fault -> the table, of all ratings, all up to tonight, last night's and tonight's
    'item ids shifted by one': lambda df, past, old, new: new.assign(item=shifted(new['item'])),
    'all ids shifted by one': lambda df, past, old, new: new.assign(item=shifted(new['item']), user=new.user + 1),
    'yesterday again': lambda df, past, old, new: old,
    'a day doubled': lambda df, past, old, new: pd.concat([old, new]),
    'ratings flipped': lambda df, past, old, new: new.assign(rating=df.rating.min() + df.rating.max() - new.rating),
    'columns swapped': lambda df, past, old, new: swapped(new),
    'text ids as numbers': lambda df, past, old, new: new.assign(item=new['item'].astype(float)),
    'leading zeros lost': lambda df, past, old, new: new.assign(item=new['item'].astype(int)),
    'times of next year': lambda df, past, old, new: new.assign(time=new.time + 365*86400),
    'a bot': lambda df, past, old, new: with_bot(df, new),
    'another scale': lambda df, past, old, new: new.assign(rating=new.rating/2),
    'all ratings equal': lambda df, past, old, new: new.assign(rating=df.rating.max()),
    'users anonymised': lambda df, past, old, new: new.assign(user=pd.factorize(new.user)[0] + 1),
    'another catalogue': lambda df, past, old, new: permuted(df, new),
    'every rating twice': lambda df, past, old, new: pd.concat([new, new]),
    'the whole table': lambda df, past, old, new: past}
BYTES = {  # fault -> the bytes of the file, of those of tonight's
    'an empty file': lambda raw: b'',
    'half a file': lambda raw: raw[:len(raw)//2],
    'a header in the middle': lambda raw: raw + raw[:raw.rindex(b'\n', 0, len(raw)//3) + 1],
    'broken encoding': lambda raw: raw.decode().encode('utf-16')}
TEXT_ONLY = 'text ids as numbers', 'leading zeros lost'


def write(path, table, damage=None):
    raw = table[COLUMNS].to_csv(index=False).encode()
    path.write_bytes(damage(raw) if damage else raw)


def solved(train):
    dls = CollabDataLoaders.from_df(train, valid_pct=0., seed=0, bs=1024, time_name='time')
    learn = collab_learner(dls, n_factors=20)
    with learn.no_bar(), learn.no_logging(): learn.fit_als(10)
    return learn


def first_model(train, folder): solved(train).save_pretrained(folder)


def night(model, path, tonight, *options):
    "The exit status of a night an hour after the newest of its ratings, and what it said."
    out, err, now = io.StringIO(), io.StringIO(), tonight.time.max() + 3600
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command(['night', str(model), str(path), '--time', 'time', '--now', str(now), *map(str, options)])
    said = err.getvalue() if status else out.getvalue()
    said = said.replace(f'{path.parent}/', '')
    return status, ' '.join(o.removeprefix('collab-pretrained: ') for o in said.splitlines() if 'warning: ' not in o)


def seen_lines(lists, past):
    "How many lines there are in a file of lists, and how many name an item that the user has rated."
    df, pairs = pd.read_parquet(lists)[['user', 'item']], past[['user', 'item']].drop_duplicates()
    lists.unlink()  # the next night writes its own
    return {'lines': len(df), 'seen': len(df.merge(pairs))}


def squared_errors(learn, tonight):
    if not isinstance(learn, CollabLearner): learn = CollabLearner.from_pretrained(learn)
    x = np.stack([v.rows(tonight[c]) for c, v in learn.vocab.items()], 1).clip(0)
    return (predictions_for(learn.model, x) - tonight.rating.to_numpy())**2


def planted(name, n, rng):
    "Night -> fault, for faults that the ids of a data set can have."
    faults = [o for o in (*TABLES, *BYTES) if name == 'movietweetings' or o not in TEXT_ONLY]
    nights = rng.choice(np.arange(5, n), len(faults), replace=False).tolist()
    return dict(zip(nights, rng.permutation(faults), strict=True))


def chain(name, df, folder, seed):
    "A line for each night and file: what it was, what became of it, and the errors of both chains before it."
    train, nights = nights_of(df, name)
    faults, path, rows = planted(name, len(nights), np.random.default_rng(seed)), folder/'tonight.csv', []
    lists, given = folder/'lists.parquet', [train]  # and the tables that were promoted: half a file is half a night
    models = {o: folder/o for o in ('guarded', 'right')}
    for o in models.values(): first_model(train, o)
    for k, tonight in enumerate(nights):
        errors = {o: squared_errors(m, tonight) for o, m in models.items()}
        said = {'data': name, 'night': k, 'n': len(tonight), **{f'se_{o}': v.sum() for o, v in errors.items()}}
        if fault := faults.get(k):
            table = TABLES.get(fault, lambda df, past, old, new: new)
            write(path, table(df, pd.concat([train, *nights[:k+1]]), nights[k-1], tonight), BYTES.get(fault))
            status, words = night(models['guarded'], path, tonight, '--recommend', lists)
            rows.append({**said, 'fault': fault, 'status': status, 'words': words})
        if not fault or rows[-1]['status']:
            write(path, tonight)
            status, words = night(models['guarded'], path, tonight, '--recommend', lists)
            rows.append({**said, 'fault': '', 'status': status, 'words': words})
        if lists.exists():
            given.append(pd.read_csv(path, dtype=tonight.dtypes.to_dict()))
            rows[-1] |= seen_lines(lists, pd.concat(given))
        write(path, tonight)
        night(models['right'], path, tonight)
    return rows


def summary(rows):
    "What became of faults and of good nights, and both chains' errors."
    df = pd.DataFrame(rows)
    bad, good = df[df.fault != ''], df[df.fault == '']
    nights = df.drop_duplicates(['data', 'night'])
    rmse = nights.groupby('data')[['se_guarded', 'se_right', 'n']].sum()
    rmse = rmse.filter(like='se_').div(rmse.n, axis=0)**.5
    print(bad[['data', 'night', 'fault', 'status']].assign(words=bad.words.str[:150]).to_string(index=False), '\n')
    refused = good[good.status != 0]
    print(f'{len(bad)} faults, {(bad.status != 0).sum()} refused; {len(good)} good nights, {len(refused)} refused: '
          f'{len(refused)/len(good):.1%}')
    print(refused[['data', 'night']].assign(words=refused.words.str[:200]).to_string(index=False), '\n')
    print(f'{df.lines.count()} nights wrote lists: {df.seen.sum():.0f} of {df.lines.sum():,.0f} lines name a seen item')
    print('RMSE of each night before it is taken in')
    print(rmse.rename(columns=lambda o: o[3:]).round(4).to_string())


def in_child(work):
    "The id of a process that does some work."
    pid = os.fork()
    if pid: return pid
    try: work()
    except BaseException: os._exit(1)
    os._exit(0)


def read_in_loop(model, versions, path, end):
    "Read the model until the file `end` is there: how often, and what was not a whole version."
    n, wrong = 0, []
    while not end.exists():
        try:
            learn = CollabLearner.from_pretrained(model)
            if len(learn.evidence()) not in versions: wrong.append(f'{len(learn.evidence())} pairs')
        except Exception as e: wrong.append(repr(e))
        n += 1
    path.write_text(f'{n} readings, {len(wrong)} of them no whole version {wrong[:3]}')


def kills(n, folder, seed=0):
    "Nights that are killed at any moment, and two at once."
    rng, model = np.random.default_rng(seed), folder/'model'
    train, nights = nights_of(read('ml-100k'), 'ml-100k')
    first_model(train, model)
    files, sizes = [], [len(train)]
    for k, tonight in enumerate(nights):
        files.append(folder/f'{k}.csv')
        write(files[-1], tonight)
        sizes.append(sizes[-1] + len(tonight))
    start = time.monotonic()
    night(model, files[0], nights[0])
    usual, done, said, killed = time.monotonic() - start, 1, folder/'readings', 0
    reader = in_child(lambda: read_in_loop(model, set(sizes), said, folder/'end'))
    for _ in range(n):
        pid = in_child(lambda k=done: night(model, files[k], nights[k]))
        time.sleep(rng.uniform(0, .6*usual))
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        held = len(CollabLearner.from_pretrained(model).evidence())
        assert held in (sizes[done], sizes[done + 1]), held
        if held == sizes[done + 1]: done += 1
        if done >= len(files) - 3: break
    both = [in_child(lambda k=k: night(model, files[k], nights[k])) for k in (done, done + 1)]
    for pid in both: os.waitpid(pid, 0)
    (folder/'end').touch()
    os.waitpid(reader, 0)
    held = len(CollabLearner.from_pretrained(model).evidence())
    print(f'{killed} nights killed, and {done - 1} came to their end; the model was a whole version each time')
    print(f'two nights at once: {held - sizes[done]} ratings taken in, of {sizes[done + 2] - sizes[done]} in both')
    print(said.read_text())


def by_command(folder, *args):
    "A command in a process of its own: its exit status, seconds, the most memory in MB, and what it said."
    start, said = time.monotonic(), folder/'said'
    command = [sys.executable, '-m', 'collab_pretrained', *map(str, args)]
    with said.open('w') as f:
        p = subprocess.Popen(command, stdout=f, stderr=f, cwd=folder)
        _, status, used = os.wait4(p.pid, 0)
    return {'status': os.waitstatus_to_exitcode(status), 'wall': time.monotonic() - start,
            'cpu': used.ru_utime + used.ru_stime, 'peak_mb': used.ru_maxrss/1024,
            'words': said.read_text().partition('\n')[0]}


def days(folder, out):
    "A line for each night of MovieTweetings, by command alone; appended to the file `out`, if any."
    df = read('movietweetings').astype({'item': int})
    first, *nights = [o for _, o in df.groupby(df.time//86400)]
    path, lists, model, rows, given = folder/'tonight.csv', folder/'lists.parquet', folder/'model', [], [first]
    write(path, first)
    by_command(folder, 'train', path, model, '--time', 'time', '--valid-pct', 0, '--n-factors', 20)
    for k, tonight in enumerate(nights):
        past = df[df.time < tonight.time.min()//86400*86400]
        row = {'night': k, 'n': len(tonight), 'se_night': squared_errors(model, tonight).sum(),
               'se_fit_als': squared_errors(solved(past), tonight).sum()}
        write(path, tonight)
        row |= by_command(folder, 'night', model, path, '--time', 'time', '--now', tonight.time.max() + 3600,
                          '--recommend', lists)
        given += [tonight]*(row['status'] == 0)
        if lists.exists(): row |= seen_lines(lists, pd.concat(given))
        size = sum(o.stat().st_size for o in model.rglob('*') if o.is_file())/2**20
        rows.append({'lines': 0, 'seen': 0, **row, 'folder_mb': size})
        if out: pd.DataFrame(rows[-1:]).round(4).to_csv(out, mode='a' if k else 'w', header=not k, index=False)
    return pd.DataFrame(rows)


def days_summary(df):
    refused, total = df[df.status != 0], df.sum(numeric_only=True)
    print(f'{len(df)} nights, {len(refused)} of them refused')
    print(refused[['night', 'n']].assign(words=refused.words.str[:200]).to_string(index=False))
    print(df[['wall', 'cpu', 'peak_mb', 'folder_mb']].quantile([.5, .95, 1]).round(1).to_string())
    print(f'{total.seen:.0f} of {total.lines:,.0f} lines of lists name a seen item; the folder ends with '
          f'{df.folder_mb.iloc[-1]:.0f} MB')
    thirds = [df, *(df[df.night*3//len(df) == o] for o in range(3))]
    rmse = [o.filter(like='se_').sum().div(o.n.sum())**.5 for o in thirds]
    print(pd.DataFrame(rmse, ['all', 'first third', 'second', 'last']).round(4).to_string())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', nargs='+', default=list(N_NIGHTS), choices=list(N_NIGHTS), help='which ratings')
    p.add_argument('--seed', type=int, default=0, help='of which nights get which fault')
    p.add_argument('--kills', action='store_true', help='kill nights, read in a loop, run two at once')
    p.add_argument('--days', action='store_true', help='every day of MovieTweetings, each by a command of its own')
    p.add_argument('--n', type=int, default=100, help='how many kills')
    p.add_argument('--out', type=Path, help='CSV file for a line of each file that a night was given')
    args, rows = p.parse_args(), []
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        if args.kills: return kills(args.n, Path(tmp), args.seed)
        if args.days: return days_summary(days(Path(tmp), args.out))
        for name in args.data:
            df = read(name)
            if df is None: continue
            folder = Path(tmp)/name
            folder.mkdir()
            rows += chain(name, df, folder, args.seed)
        summary(rows)
        if args.out: pd.DataFrame(rows).round(4).to_csv(args.out, index=False)


if __name__ == '__main__': main()
