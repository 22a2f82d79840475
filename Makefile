# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types models clean

# Installed once, and again only when pyproject.toml changes.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: .venv/ready
	$(BIN)/python evaluate.py

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/pyright

# The small models from nothing; an interrupted training goes on where it stopped.
# PRECISION=bf16-mixed is faster on a GPU, and on a CPU with bf16 matrix units.
PRECISION ?= 32-true
models: .venv/ready
	$(BIN)/python train.py -m method=tiny_encoder,tiny_autoencoder,tiny_denoiser,tiny_language trainer.precision=$(PRECISION)
	$(BIN)/python -m lgclip.tiny.install

clean:
	rm -rf .venv outputs multirun
