"""What a user of collab_pretrained needs, for `from collab_pretrained.all import *`. Written by hand, as fastai's `all` modules are."""
from fastai.collab import EmbeddingNN

from .core import (CheckpointError, CheckpointNotFoundError, CollabError, CollabWarning, RatingsError, SaveError, VocabError, WeightsError,
                   planted_ratings)
from .vocab import MatchReport, Vocab, VocabMatch, match_classes, match_vocab
from .match import match_embeds, nearest
from .keys import load_pretrained_keys
from .elsewhere import Pretrained, from_arrays, from_cmfrec, from_gensim, from_implicit, from_lightfm, from_surprise, load_export, read_vectors
from .data import CollabDataLoaders
from . import stream as _stream  # CollabDataLoaders.from_stream
from .models import EmbeddingDotBias, collab_splitter
from .ranking import BPR, Ranking, RankingDL, Softmax, WARP
from .optim import FusedAdam
from .learner import CollabLearner
from .foldin import FoldedIn
from .factory import collab_learner
from .finetune import AnchorCallback, FrozenRowsCallback
from .update import UpdateReport
from .evaluate import Benchmark, RankMetric, benchmark, newest_unseen, rank_scores
from . import recommend as _recommend  # learn.recommend, similar_items, similar_users, export_vectors
from . import plots as _plots  # learn.plot_embeddings, plot_bias, plot_coverage, plot_curves, plot_errors
from . import hub as _hub  # learn.push_to_hub
from . import distributed as _distributed  # learn.distrib_ctx
from .sharded import load_sharded, save_sharded, shard_embeddings
from .torchrec import from_torchrec, to_torchrec
