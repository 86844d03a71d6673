# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. `make docs` builds the site; `make nightly` runs
# the long tests at full length, with the libraries that need a compiler, and TorchRec where it is to be had.
# Each makes its own virtual environment with PYTHON (3.10 or newer) and installs again only when a file below has changed.
PYTHON ?= python3
FACTS := pyproject.toml settings.ini setup.py constraints.txt
DEV := $(CURDIR)/.venv-test/bin
# What the two checkers look at; the whole tree, and the whole package, as soon as their rooms are clean
RUFF := .
TY := collab_pretrained
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test nightly docs clean

demo: .venv/installed
	.venv/bin/python tools/stage_ml100k.py
	.venv/bin/collab-pretrained demo

# Two notebooks run at a time, so one thread each
test: export OMP_NUM_THREADS ?= 1
test: export PATH := $(DEV):$(PATH)
test: .venv-test/installed
	@echo '== MovieLens 100K'
	@python tools/stage_ml100k.py
	@echo '== ruff and ty'
	@ruff check $(RUFF)
	@ty check $(TY)
	@echo '== nbdev-export and nbdev-clean leave no difference'
	@python tools/check_export.py
	@echo '== README.md is in step with nbs/index.ipynb'
	@python tools/readme.py --check
	@echo '== nbdev-test'
	@nbdev-test --do-print --timing
	@echo '== pytest tests'
	@python -m pytest tests

nightly: export PATH := $(DEV):$(PATH)
nightly: .venv-test/installed
	python -m pip install -q -c constraints.txt -e '.[dev,interop,tune]'
	-python -m pip install -q --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 tensordict pyre-extensions typing-inspect mypy-extensions pyvers
	python tools/stage_ml100k.py
	python -m pytest tests --nightly
	TEST_DEVICE=cpu python -m pytest tests/test_gpu.py

docs: export PATH := $(DEV):$(PATH)
docs: .venv-test/installed
	python tools/stage_ml100k.py
	python tools/build_docs.py

clean:
	rm -rf .venv .venv-test _build _docs build dist *.egg-info

.venv/installed: EXTRA :=
.venv-test/installed: EXTRA := [dev]
.venv/installed .venv-test/installed: $(FACTS)
	@echo '== Installing into $(@D) (some minutes the first time)'
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -q -c constraints.txt -e '.$(EXTRA)'
	@touch $@
