"""What a user of collab_pretrained needs, for `from collab_pretrained.all import *`. Written by hand, as fastai's `all` modules are."""
from fastai.collab import EmbeddingNN

from .core import (CheckpointError, CheckpointNotFoundError, CollabError, CollabWarning, RatingsError, SaveError, VocabError, WeightsError,
                   planted_ratings)
from .vocab import MatchReport, Vocab, VocabMatch, match_classes, match_vocab
from .match import match_embeds, nearest
from .keys import load_pretrained_keys
from .data import CollabDataLoaders
from .models import EmbeddingDotBias
from .learner import CollabLearner
from .factory import collab_learner
from . import recommend as _recommend  # learn.recommend, similar_items, similar_users, export_vectors
