"""Run notebooks and keep what they show: `nbdev-test --save`, and progress bars as a terminal would have left them, not
each of their steps.

Usage: python tools/run_nbs.py [NOTEBOOK or FOLDER ...]   (default: nbs)
"""

import re
import subprocess
import sys
from pathlib import Path

from fastcore.nbio import read_nb, write_nb

BAR = re.compile(r'^(Epoch \d+/\d+ :)?\s*(\|[█-]*\|.*|█)?\s*$')


def as_shown(text:str) -> str: # what a terminal shows of it
    "Each line after its carriage returns, without lines that only held a progress bar."
    lines = []
    for line in text.split('\n'):
        shown = ''
        for part in line.split('\r'): shown = part + shown[len(part):]
        if '\r' not in line or not BAR.match(shown): lines.append(shown.rstrip())
    return '\n'.join(lines)


def tidy(path:Path) -> None:
    "Put what a terminal shows in the place of each printed output."
    nb = read_nb(path)
    for c in nb.cells:
        for o in c.get('outputs', []):
            if o['output_type'] == 'stream': o['text'] = as_shown(''.join(o['text'])).splitlines(keepends=True)
        if 'outputs' in c:
            c['outputs'] = [o for o in c['outputs'] if o['output_type'] != 'stream' or ''.join(o['text']).strip()]
    write_nb(nb, path)


def run(path:Path) -> None: # a notebook, or a folder of them
    "Run, and write outputs into the notebooks where all went well."
    subprocess.run(['nbdev-test', str(path), '--save'], check=True)
    for o in [path] if path.is_file() else path.rglob('*.ipynb'): tidy(o)


if __name__ == '__main__':
    for o in sys.argv[1:] or ['nbs']: run(Path(o))
