"Importing anything of this package gives `CollabDataLoaders` all its methods."
from functools import partial

from .._moved import old_name
from . import stream  # noqa: F401

__getattr__ = partial(old_name, 'data')  # for learners exported before 0.1
