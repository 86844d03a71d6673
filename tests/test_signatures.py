"Code for fastai's collab keeps its meaning: what it gives by position or by name reaches the same parameter here."
import inspect

import pytest
from fastai import collab, learner

from collab_pretrained import all as ours

def methods_of(own, theirs):
    "Pairs of public methods that `own` has of its own beside those of `theirs`."
    names = [k for k in dir(theirs) if not k.startswith('_') or k == '__init__']
    found = [(k, getattr(own, k), getattr(theirs, k)) for k in names]
    return [(f'{own.__name__}.{k}', a, b) for k, a, b in found if callable(a) and callable(b) and a is not b]


PAIRS = [
    *methods_of(ours.CollabLearner, learner.Learner),
    *methods_of(ours.CollabDataLoaders, collab.CollabDataLoaders),
    *methods_of(ours.EmbeddingDotBias, collab.EmbeddingDotBias),
    ('collab_learner', ours.collab_learner, collab.collab_learner),
]


@pytest.mark.parametrize('name,own,theirs', PAIRS, ids=[o[0] for o in PAIRS])
def test_takes_what_fastai_takes(name, own, theirs):
    try: own, theirs = (inspect.signature(o).parameters for o in (own, theirs))
    except ValueError: return  # of C code
    var = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    by_place = [k for k, o in theirs.items() if o.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert [k for k, o in own.items() if o.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD][:len(by_place)] == by_place
    takes_any = any(o.kind in var for o in own.values())
    assert takes_any or not [k for k, o in theirs.items() if o.kind not in var and k not in own]


def test_fifth_of_a_learner_is_its_learning_rate():
    assert list(inspect.signature(ours.CollabLearner).parameters)[:7] == [
        'dls',
        'model',
        'loss_func',
        'opt_func',
        'lr',
        'splitter',
        'cbs',
    ]
