#!/bin/sh
# Install a wheel by itself into a new virtual environment, and run the quickstart with it, outside the repository.
# Usage: tools/try_wheel.sh dist/collab_pretrained-0.1.0-py3-none-any.whl
set -eu
wheel=$(realpath "$1") root=$(realpath "$(dirname "$0")/..") tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q -c "$root/constraints.txt" "$wheel"
cd "$root/tools"
"$tmp/venv/bin/python" -c "
from pathlib import Path
from pages import visible_code
Path('$tmp/quickstart.py').write_text(visible_code(Path('$root/nbs/tutorials/quickstart.ipynb')))"
cd "$tmp"
MPLBACKEND=agg venv/bin/python -W ignore quickstart.py > /dev/null
venv/bin/collab-pretrained --version
