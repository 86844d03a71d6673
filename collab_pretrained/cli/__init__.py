"The command `collab-pretrained`; its help and its version need no more than this file."
import gc
import os
import signal
import sys
from importlib import import_module

from .. import __version__

__all__ = ['main', 'DESCRIPTIONS']

DESCRIPTIONS = {  # command -> the docstring of its function in `cli.commands`
    'train': 'Train a model on a ratings table, from scratch or from another model, and save it.',
    'match': 'Tell which users and items of a table a saved model knows.',
    'night': 'Take tonight\'s ratings into a model, and serve the result if nothing speaks against it.',
    'history': 'Tell what each night did to a model.',
    'rollback': 'Have an earlier version of a model served again.',
    'apply': 'Bring a copy of a model up to date, by what a night changed.',
    'update': 'Take new ratings into a saved model, known and new users and items alike, and save it.',
    'evaluate': 'Measure a saved model on ratings: how far predictions are off, and how good the lists are.',
    'recommend': 'Name the items that each user would rate highest.',
    'inspect': 'Tell what a saved model is, and whether it is whole.',
    'forget': 'Remove users or items from a model, its earlier versions, and the lists and vectors of nights.',
    'export': 'Write the vectors of users and items for a search index.',
    'demo': 'Train a model, update it on some nights, refuse a bad one, and show the results.',
}

MODULES = {'demo': 'demo', 'night': 'night', 'apply': 'night', 'forget': 'night', 'history': 'versions',
           'rollback': 'versions'}  # the others are in `cli.commands`

USAGE = '''usage: collab-pretrained COMMAND ...

{}

`collab-pretrained COMMAND --help` tells a command's options. A week of nights:

  collab-pretrained train monday.csv model
  collab-pretrained night model tuesday.csv --recommend lists.parquet
  collab-pretrained history model

Exit status: 0; 1 where a check fell short or a night was refused, and the model is as it was; 2 for input that can't
be used; 3 for a fault of the program itself; 130 for Ctrl-C.'''


def _show(text):
    "Print to standard output, whose reader may have gone."
    try: print(text, flush=True)
    except BrokenPipeError: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _refuse(message, status=2):
    print(f'collab-pretrained: {message}', file=sys.stderr)
    return status


def main(
    argv:list|None=None, # the command's arguments; None means `sys.argv[1:]`
) -> int: # the exit status
    "Run a command of `collab-pretrained`."
    status = _run(argv)
    if argv is None: signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done, and its status is the process's
    return status


def _is_in_deleted_folder():
    try: os.getcwd()
    except FileNotFoundError: return True
    return False


def _run(argv):
    name, *args = (sys.argv[1:] if argv is None else argv) or ['--help']
    described = '\n'.join(f'  {k:10}  {o}' for k, o in DESCRIPTIONS.items())
    if name in ('-h', '--help'): return _show(USAGE.format(described))
    if name == '--version': return _show(f'collab-pretrained {__version__}')
    if _is_in_deleted_folder():  # where torch can't be imported
        return _refuse('the current folder was deleted; expected one that exists: `cd` to it')
    try:
        if name not in DESCRIPTIONS:
            return _refuse(f'no command {name!r}; expected one of {", ".join(DESCRIPTIONS)}')
        is_own = argv is None  # whether the process is the command's own
        if is_own: gc.disable()  # nothing that is imported is garbage, and looking for it takes half a second
        from .running import import_fastai, run
        module = MODULES.get(name, 'commands')
        if is_own and module != 'versions': import_fastai()
        command = getattr(import_module(f'{__name__}.{module}'), f'cli_{name}')
        if is_own:
            gc.freeze()
            gc.enable()
        return run(name, command, args)
    except KeyboardInterrupt: return _refuse('interrupted', 130)  # also while torch is imported
