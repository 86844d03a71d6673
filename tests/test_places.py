"An error about a line of a file names the file and the line in it, whatever the file is and however many there are."
import gzip

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import dataset

from collab_pretrained.all import CollabDataLoaders, RatingsError, planted_ratings
from collab_pretrained.cli import main
from collab_pretrained.data.files import read_table

WHOLE = planted_ratings(n_users=40, n_items=30, n_ratings=400)[['user', 'item', 'rating']]
HOLE = WHOLE.tail(20).astype({'user': 'Int64'}).reset_index(drop=True)
HOLE.loc[8, 'user'] = pd.NA
ODD = WHOLE.tail(20).reset_index(drop=True)
ODD.loc[7, 'rating'] = float('inf')


@pytest.fixture
def there(tmp_path, monkeypatch):
    "A folder with a whole file of each kind and of each one with a missing id, one with a rating that is no number."
    monkeypatch.chdir(tmp_path)
    for name, df in (('whole', WHOLE), ('hole', HOLE), ('odd', ODD)):
        df.to_csv(f'{name}.csv', index=False)
        df.to_json(f'{name}.jsonl', orient='records', lines=True)
        df.to_json(f'{name}.json', orient='records')
        df.to_parquet(f'{name}.parquet')
    with gzip.open('hole.csv.gz', 'wt') as f: f.write(HOLE.to_csv(index=False))
    HOLE.to_csv('utf16.csv', index=False, encoding='utf-16')
    for part, df in (('a', WHOLE), ('b', HOLE), ('c', HOLE)):
        (tmp_path/'folder').mkdir(exist_ok=True)
        df.to_parquet(f'folder/{part}.parquet')
    return tmp_path


def error_of(ratings, f=CollabDataLoaders.from_df, **kwargs):
    with pytest.raises(RatingsError) as e: f(ratings, **kwargs)
    return str(e.value)


@pytest.mark.parametrize('file,place', [
    ('hole.csv', 'line 10 of hole.csv;'),
    ('hole.csv.gz', 'line 10 of hole.csv.gz;'),
    ('hole.jsonl', 'line 9 of hole.jsonl;'),
    ('hole.json', 'row 8 of hole.json (counted from 0);'),
    ('hole.parquet', 'row 8 of hole.parquet (counted from 0);'),
    ('odd.parquet', 'inf in row 7 of odd.parquet (counted from 0) is'),
    ('odd.csv', 'line 9 of odd.csv is'),
    ('folder', 'row 8 of folder/b.parquet (counted from 0), and of 1 more files;')])
def test_a_file(there, file, place):
    assert place in error_of(read_table(file), user_name='user', item_name='item', rating_name='rating')


def test_rows_where_lines_are_not_known(there):
    said = error_of('utf16.csv', CollabDataLoaders.from_csv, encoding='utf-16')
    assert 'row 8 of utf16.csv (counted from 0);' in said


@pytest.mark.parametrize('f', [CollabDataLoaders.from_parquet, CollabDataLoaders.from_stream])
def test_many_files_in_python(there, f):
    some = ['whole.parquet', 'hole.parquet']
    assert 'in row 8 of hole.parquet (counted from 0)' in error_of(some, f).replace('the first ', '')
    assert 'row 7 of odd.parquet (counted from 0) is not' in error_of(['whole.parquet', 'odd.parquet'], f)
    assert 'folder/b.parquet (counted from 0)' in error_of('folder', f)
    if f == CollabDataLoaders.from_stream: assert 'folder/b.parquet (counted from 0)' in error_of('folder/*.parquet', f)


def test_datasets_and_filters(there):
    files = dataset.dataset('folder')
    assert 'folder/b.parquet' in error_of(files)
    assert 'counted from 0' in error_of(files.filter(dataset.field('item') > 3))  # which rows these are is not known
    res = CollabDataLoaders.from_df(dataset.dataset('whole.parquet'), seed=1)
    assert res.report.n_train + res.report.n_valid == len(WHOLE)
    assert 'in rows 8 (counted from 0)' in error_of(pa.table(HOLE))


def test_joined_on_the_command_line(there, capsys):
    assert main(['train', 'whole.csv', 'model', '--epochs', '1', '--n-factors', '2']) == 0
    for option in ('--history', '--ratings'):
        for file, place in (('hole.csv', 'line 10 of hole.csv;'), ('hole.parquet', 'row 8 of hole.parquet (counted'),
                            ('folder', 'row 8 of folder/b.parquet (counted from 0), and of 1 more')):
            capsys.readouterr()
            assert main(['recommend', 'model', option, 'whole.csv', file]) == 2
            assert place in capsys.readouterr().err
    capsys.readouterr()
    assert main(['recommend', 'model', '--ratings', 'whole.parquet', 'whole.csv', 'odd.csv']) == 2
    assert "'inf'" in (said := capsys.readouterr().err) or 'inf in line 9 of odd.csv' in said


def test_a_list_of_csv_files_is_none(there):
    assert 'pd.concat' in error_of(['whole.csv', 'odd.csv'], CollabDataLoaders.from_csv)
