"Several processes, tables spread over them, and the exchange with TorchRec."
from .sharded import load_sharded, save_sharded, shard_embeddings
from .torchrec import from_torchrec, to_torchrec

__all__ = ['from_torchrec', 'load_sharded', 'save_sharded', 'shard_embeddings', 'to_torchrec']
