"""What a user needs, for `from collab_pretrained.all import *`; written by hand, as fastai's `all` modules are.

It has the names of `fastai.collab` as well, so that a notebook written for fastai runs with this one import changed.
"""
from fastai.tabular.all import *
from fastai.collab import *  # ours come after, since some have the same names

from .core import (
    CheckpointError,
    CheckpointNotFoundError,
    CollabError,
    CollabWarning,
    RatingsError,
    SaveError,
    VocabError,
    WeightsError,
    planted_ratings,
)
from .data.loaders import CollabDataLoaders
from .data.splits import newest_unseen
from .ids.matching import match_vocab
from .learner.core import CollabLearner
from .learner.factory import collab_learner
from .learner.finetune import AnchorCallback
from .models.embeddings import EmbeddingDotBias
from .models.optim import FusedAdam
from .models.ranking import BPR, WARP, Softmax
from .serve.benchmark import benchmark
from .serve.delta import apply_delta
from .serve.evaluate import RankMetric
from .weights import importers
from .weights.match import match_embeds, nearest
from .weights.pretrained import Pretrained
from .weights.roles import load_pretrained_keys
