"The cell magic `%%shell` of the pages about commands: they run in this process, and the cell shows what they print."

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

from collab_pretrained.cli import main

def command(*argv):
    "The exit status of a command, and what it writes."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): status = main([str(o) for o in argv])
    return status, out.getvalue(), re.sub(r'[\d.]+ s$', '... s', err.getvalue(), flags=re.M)


def shell(_, cell):
    "Lines of a shell, and what they print, but for what `> FILE` writes to a file."
    for line in cell.strip().splitlines():
        name, *argv = shlex.split(line, comments=True)
        assert name == 'collab-pretrained'
        argv, file = (argv[:-2], argv[-1]) if '>' in argv else (argv, None)
        status, out, err = command(*argv)
        if file:
            Path(file).write_text(out)
            out = ''
        said = (out + err).replace(f'{os.getcwd()}{os.sep}', '')
        print(said + (f'exit status {status}' if status else ''), end='')
