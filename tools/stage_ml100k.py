"""Put MovieLens 100K where `untar_data(URLs.ML_100k)` finds it, so that notebooks and tests need no network.

It comes from GroupLens where they can be reached, else from the copy inside the wheel of recbole 1.2.1, which pip
fetches. That copy has every rating, user, title, year and genre, in GroupLens' order; release dates are known to the
year only (01-Jan), and links to IMDb are left out. """

import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from fastai.data.external import URLs, fastai_path, untar_data

ROWS = {'u.data': 100_000, 'u.user': 943, 'u.item': 1_682}
GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
WHEEL, INSIDE = 'recbole==1.2.1', 'recbole/dataset_example/ml-100k/ml-100k.'


def counts(folder:Path) -> dict: # lines of each file of `ROWS`, 0 where there is none
    "How many ratings, users and items stand in `folder`."
    return {o: (folder/o).read_bytes().count(b'\n') if (folder/o).exists() else 0 for o in ROWS}


def reachable(url:str) -> bool:
    "Whether a server answers at `url` within a few seconds."
    try: return urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=5).status == 200
    except OSError: return False


def item_line(id:str, title:str, year:str, genres:str) -> str: # a line of GroupLens' `u.item`
    "Undo what recbole did to a title: put its last bracket back, and the genres into 19 flags."
    if title == 'unkonwn': title, year = 'unknown', '' # the one film that GroupLens knows nothing of
    else:
        title = f'{title} ({year})'
        year = re.findall(r'\((\d{4})\)', title)[-1] # one title ends in '(1995) (V)', for video
    flags = ['01'[o in genres.split(' ')] for o in GENRES]
    return '|'.join([id, title, year and f'01-Jan-{year}', '', '', *flags])


def from_wheel(folder:Path) -> Path: # the folder inside `folder` that holds the three files
    "Fetch recbole's copy and rebuild `u.data`, `u.user` and `u.item` from it."
    subprocess.run([sys.executable, '-m', 'pip', 'download', '-qq', '--no-deps', '-d', folder, WHEEL], check=True)
    with zipfile.ZipFile(next(folder.glob('*.whl'))) as z:
        inter, user, item = (
            [line.split('\t') for line in z.read(INSIDE + o).decode().splitlines()[1:]]
            for o in ('inter', 'user', 'item')
        )
    lines = {'u.data': map('\t'.join, inter), 'u.user': map('|'.join, user), 'u.item': (item_line(*o) for o in item)}
    staged = folder/'ml-100k'
    staged.mkdir()
    for name, ls in lines.items():
        (staged / name).write_text(''.join(f'{o}\n' for o in ls), encoding='latin-1', newline='')
    return staged


def main() -> None:
    "Stage the data, unless it is there already."
    dest = fastai_path('data')/'ml-100k'
    if counts(dest) == ROWS: return print(f'MovieLens 100K is at {dest}')
    if dest.exists():
        sys.exit(f'{dest} holds {counts(dest)} lines, not {ROWS}: move that folder away and run this again')
    if reachable(URLs.ML_100k):
        untar_data(URLs.ML_100k)
        if counts(dest) != ROWS: sys.exit(f'GroupLens gave {counts(dest)} lines, not {ROWS}')
        return print(f'MovieLens 100K is at {dest}, from GroupLens')
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix='ml-100k-') as tmp:
        staged = from_wheel(Path(tmp))
        if counts(staged) != ROWS: sys.exit(f'{WHEEL} gave {counts(staged)} lines, not {ROWS}')
        staged.rename(dest)
    print(f'MovieLens 100K is at {dest}, from the wheel of {WHEEL}, as GroupLens is out of reach')


if __name__ == '__main__': main()
