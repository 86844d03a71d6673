"""Where the modules of versions before 0.1 have gone, so that the learners exported by them still load.

A pickle names a class by its module. The old names of modules are imported as before, and find their classes in the
new ones.
"""
import sys
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

PACKAGE = __name__.rpartition('.')[0]

# old module -> the modules that have its names now
MOVED = {
    'checkpoint': ['weights.unpickle', 'weights.reading', 'weights.pairs', 'weights.folders'],
    'data': ['data.loaders', 'data.batches'],
    'distributed': ['scale.distributed'],
    'elsewhere': ['weights.pretrained', 'weights.importers'],
    'evaluate': ['serve.evaluate', 'serve.benchmark'],
    'factory': ['learner.factory'],
    'finetune': ['learner.finetune'],
    'foldin': ['learner.foldin'],
    'learner': ['learner.core'],
    'loop': ['learner.loop'],
    'match': ['weights.match'],
    'models': ['models.embeddings'],
    'optim': ['models.optim'],
    'ranking': ['models.ranking', 'models.sampling'],
    'ratings': ['data.ratings'],
    'sharded': ['scale.sharded'],
    'stream': ['data.stream'],
    'update': ['learner.update', 'learner.forget'],
    'vocab': ['ids.vocab', 'ids.matching'],
}


def old_name(old, name):
    "What the old module `old` called `name`; raises AttributeError where it has gone."
    for new in MOVED[old] if not name.startswith('__') else ():
        module = import_module(f'{PACKAGE}.{new}')
        if hasattr(module, name): return getattr(module, name)
    raise AttributeError(f'module {PACKAGE}.{old} has no attribute {name!r}')


class OldModules(MetaPathFinder, Loader):
    "Finds old modules that are no package today."
    def find_spec(self, fullname, path=None, target=None):
        package, _, old = fullname.rpartition('.')
        return ModuleSpec(fullname, self) if package == PACKAGE and old in MOVED else None

    def create_module(self, spec): return None
    def exec_module(self, module): module.__getattr__ = partial(old_name, module.__name__.rpartition('.')[2])


def register():
    "Have old modules found, after all others were looked for."
    if not any(isinstance(o, OldModules) for o in sys.meta_path): sys.meta_path.append(OldModules())
