"What several test files do."
import io
from contextlib import redirect_stderr, redirect_stdout

from collab_pretrained.cli import main

def quiet(learn, what, *args, **kwargs):
    "A method of a learner, without bars and lines of epochs."
    with learn.no_bar(), learn.no_logging(): return getattr(learn, what)(*args, **kwargs)

def run(*argv):
    "Exit status, standard output and standard error of a command in this process."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): status = main([str(o) for o in argv])
    return status, out.getvalue(), err.getvalue()

def content(folder):
    "Name -> bytes of the files in a folder."
    return {o.name: o.read_bytes() for o in sorted(folder.iterdir()) if o.name != '.lock'}
