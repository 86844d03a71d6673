"""`pytest --nightly` runs the kills, the fuzz and the properties at full length; without it they are as long as a
change can wait for."""

import pytest
import torch
from hypothesis import register_random, settings

class TorchRandom:
    "torch's global random state, as hypothesis wants those that it seeds before each example."
    seed, getstate, setstate = map(staticmethod, (torch.manual_seed, torch.get_rng_state, torch.set_rng_state))

torch_random = TorchRandom() # which hypothesis refers to weakly
register_random(torch_random)


def pytest_addoption(parser):
    parser.addoption('--nightly', action='store_true', help='run the long tests at full length')


def pytest_configure(config):
    settings.register_profile('ours', max_examples=400 if config.getoption('nightly') else 40, deadline=None)
    settings.load_profile('ours')


@pytest.fixture
def times(request):
    "How often to do what a nightly run does `n` times: a fifth of it otherwise."
    return lambda n: n if request.config.getoption('nightly') else n//5
