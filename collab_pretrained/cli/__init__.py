"The command `collab-pretrained`."
from .commands import main

__all__ = ['main']
