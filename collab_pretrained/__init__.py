"Transfer learning for fastai's collaborative filtering; `collab_pretrained.all` has the names."
from ._moved import register

__version__ = "0.1.0"
register()
