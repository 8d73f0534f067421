# Two commands on a fresh machine do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
# Waiting threads that spin make training up to ten times slower when another process needs a core.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: quickstart test test-all check bench bench-compression bench-gpu soak clean

quickstart: $(STAMP)  ## fine-tune the embedded model on embedded data, offline, and show what came of it
	$(BIN)/tunekit sft recipes/quickstart.yaml

# These fork, which a process with threads must not, and the workers of pytest-xdist have some.
FORKING := tests/runs/test_runs_lock.py $(addprefix tests/train/test_,crash.py disk.py full_disk.py memory.py rehearsal.py)

test: $(STAMP)  ## the tests, two files at a time but for those that fork
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(FORKING))
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(FORKING)

test-all: $(EXTRAS)  ## the slow tests as well, and those of packages that are extras
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "slow or not slow"

check: $(STAMP)  ## ruff, mypy, layers and house limits
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py

bench: $(STAMP)  ## ratios against the libraries tunekit stands on, in one run
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/first_step.py
	$(BIN)/python benchmarks/guards.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/growth.py --turns 1
	$(BIN)/python benchmarks/likelihood.py --rounds 1
	$(BIN)/python benchmarks/generation.py --rounds 1
	$(BIN)/python benchmarks/dpo.py --rounds 1

bench-compression: $(EXTRAS)  ## smaller models beside what they were made from: every kind that this machine can make
	$(BIN)/python benchmarks/compression.py --rows 64

bench-gpu: $(STAMP)  ## the same on a GPU: models of 0.5 and 1 billion parameters, packed rows of 2,048 tokens
	$(BIN)/python benchmarks/gpu.py

MINUTES ?= 30
soak: $(STAMP)  ## trains, kills, resumes and damages at random: make soak MINUTES=30
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

# torch is asked for by its exact version: on a machine without a GPU any other request pulls gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tunekit needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,bnb,eval,harness,tensorboard]'
	touch $(STAMP)

# llama-cpp-python has no wheel: it is built here, in minutes
$(EXTRAS): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[compress,gguf]'
	touch $(EXTRAS)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
