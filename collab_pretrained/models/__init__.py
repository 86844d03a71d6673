from functools import partial

from .._moved import old_name

__getattr__ = partial(old_name, 'models')  # for learners exported before 0.1
