# Each target sets itself up in .venv; a machine needs python3 (3.11 or newer) and make.
# PYTHON=python3.12 make test   takes another Python for the first set-up.

PYTHON ?= python3
BIN = .venv/bin

.PHONY: check test faults cluster bench demo published-scores clean

check: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

test: export HF_HUB_OFFLINE = 1
test: .venv/.installed
	$(BIN)/python -m pytest

# every fault of docs/faults.md, whose table it writes anew; the full disks need root
faults: export HF_HUB_OFFLINE = 1
faults: export FAULTS = all
faults: export FAULT_TABLE = docs/faults.md
faults: .venv/.installed
	$(BIN)/python -m pytest tests/faults

# a real SLURM of its own; needs root, and apt-get install slurm-wlm munge iproute2
cluster: export HF_HUB_OFFLINE = 1
cluster: .venv/.installed
	$(BIN)/python -m pytest -m cluster tests/cluster

# real tokens a second beside Seq2SeqTrainer; on a CPU an hour and more
bench: .venv/.installed
	$(BIN)/python -m benchmarks.train_vs_seq2seq_trainer

demo: export HF_HUB_OFFLINE = 1
demo: export WANDB_MODE = offline
demo: .venv/.installed
	$(BIN)/encdec train

# needs ENCDEC_DATA, the folder with the reference data
published-scores: .venv/.installed
	@$(BIN)/python -m benchmarks.published_scores

# results in outputs/ are kept
clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find encdec_train tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: PYTHON: expected Python 3.11 or newer, got $$($(PYTHON) --version 2>&1). Name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
