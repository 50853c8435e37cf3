# `make demo` and `make test` do all their own set-up; PYTHON and VENV may be given.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# of some 28,000 modules a run imports a few thousand, so they are compiled when they are imported first, and kept: compiled
# anew in every process, imports take twice as long
unexport PYTHONDONTWRITEBYTECODE
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test test-all chaos lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m beeray.demo --fresh

# what is quick on two cores at once, then what starts a Ray: such a command has use for both by itself
test: $(VENV)/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0 --durations=10 -m "not slow and not long"
	$(BIN)/python -m pytest -v --durations=20 -m "slow and not long"

# what `make test` leaves out, too: whole jobs on S3 and on a cluster, kills of many kinds
test-all: $(VENV)/.test
	$(BIN)/python -m pytest --durations=10

# faults at random moments: of prepare, train, tune and embed on a cluster of two nodes, then of the nightly job in more detail
chaos: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python tests/chaos/chaos.py --rounds 24 --seed 1
	PYTHONPATH=tests $(BIN)/python tests/verbs/embed_chaos.py --rounds 12 --seed 1

lint: $(VENV)/.test
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/python -m mypy

# torch goes first and pinned, so that nothing that needs it chooses another build
$(VENV)/.torch: constraints.txt
	@echo "setting up $(VENV) (some minutes the first time) …"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo,s3,test]'
	@touch $@

clean:
	rm -rf runs stores embeddings build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
