"""Check that `nbdev-export` and `nbdev-clean` change nothing: the modules are what the notebooks say, and no run left
its traces.

The files are compared before and after, not with the last commit, so uncommitted work is no difference.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def snapshot() -> dict: # path: content
    "Every file of the notebooks and of the package."
    return {
        p.relative_to(ROOT): p.read_bytes()
        for d in ('nbs', 'collab_pretrained')
        for p in sorted((ROOT / d).rglob('*'))
        if p.is_file() and '__pycache__' not in p.parts and '.ipynb_checkpoints' not in p.parts
    }


def main() -> None:
    "Run both, and name the files that changed; they are left as the two commands made them."
    old = snapshot()
    for cmd in ('nbdev-export', 'nbdev-clean'): subprocess.run([cmd], cwd=ROOT, check=True)
    new = snapshot()
    changed = [str(p) for p in sorted({*old, *new}) if old.get(p) != new.get(p)]
    if changed:
        sys.exit(
            'Changed by nbdev-export or nbdev-clean: '
            + ', '.join(changed)
            + '\nRead the change (git diff) and commit it.'
        )
    print(f'{len(new)} files as they were')


if __name__ == '__main__': main()
