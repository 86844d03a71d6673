"Importing anything of this package gives `CollabLearner` its methods; those of higher rooms come at their first use."
from functools import partial

from .._moved import old_name
from . import als, evidence, factory, finetune, foldin, forget, posterior, update  # noqa: F401

__getattr__ = partial(old_name, 'learner')  # for learners exported before 0.1
