# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types models audit clean

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
	$(BIN)/python train.py -m method=tiny_encoder,tiny_autoencoder,tiny_denoiser,tiny_language,tiny_captioner trainer.precision=$(PRECISION)
	$(BIN)/python -m lgclip.tiny.install

# The peers that benchmarks/ measures against, in an environment of their own: see benchmarks/RESULTS.md.
benchmarks/.venv/ready: pyproject.toml benchmarks/peers.txt
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable . --requirement benchmarks/peers.txt
	touch $@

# Known weaknesses of what is installed, asked of osv.dev: the only target that needs a network after the installation.
audit: .venv/ready
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.audit/bin/pip-audit --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])") --skip-editable -s osv

clean:
	rm -rf .venv .audit benchmarks/.venv outputs multirun
