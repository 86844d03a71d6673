"`python -m collab_pretrained` is the command `collab-pretrained`."
import sys

from .cli import main

if __name__ == '__main__': sys.exit(main())
