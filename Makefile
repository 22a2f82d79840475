# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

# An index that has torch's CPU wheels, a tenth of the size: make demo TORCH_INDEX=URL. It is used where there is no
# NVIDIA GPU and the index answers; otherwise torch comes from pip's own index, built for CUDA, and runs on CPUs too.
TORCH_INDEX ?=
# A file of exact versions, such as constraints.txt; without one pip takes the newest that pyproject.toml allows.
CONSTRAINTS ?=
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test test-slow test-all lint types docs docs-check models audit sbom lowest constraints clean

# What running needs, once, and again only when pyproject.toml changes.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@if [ -n "$(TORCH_INDEX)" ] && ! command -v nvidia-smi >/dev/null && \
	    $(BIN)/python -c "import urllib.request; urllib.request.urlopen('$(TORCH_INDEX)', timeout=10)"; then \
	  echo "No GPU: torch's CPU wheels from TORCH_INDEX, about 250 MB; one to three minutes."; \
	  $(PIP_INSTALL) torch torchvision --index-url "$(TORCH_INDEX)"; \
	else \
	  echo "Installing torch as pip's index has it: about 3 GB with its CUDA libraries, 2 to 15 minutes by the network."; \
	  $(if $(TORCH_INDEX),echo "TORCH_INDEX=$(TORCH_INDEX) was not used: a GPU is there or the index does not answer.";) \
	  $(PIP_INSTALL) torch torchvision; \
	fi
	@echo "Installing lgclip and what else it needs: about 200 MB, one to three minutes."
	$(PIP_INSTALL) --editable .
	touch $@

# The tests' tools and every extra besides.
.venv/ready: .venv/installed
	@echo "Installing the extras and the tools for tests: about 400 MB, one to three minutes."
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/lgclip build examples/names.txt -o outputs/demo.lgclip
	$(BIN)/lgclip classify outputs/demo.lgclip examples/images
	$(BIN)/python evaluate.py

# A worker per core, each with one thread: more threads would wait for each other. Each begins with one half of the
# tests, so that what the tests of a file share is made once, and helps the other at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
test: .venv/ready
	$(PYTEST) -m "not slow and not multiprocess and not browser"

# What `make test` leaves out: tests of more than two seconds, of several processes, and in a browser. Types and shapes of
# arguments are checked in the fast tests alone: see tests/conftest.py.
test-slow: .venv/ready
	LGCLIP_TEST_TYPES=0 $(PYTEST) -m "slow or multiprocess or browser"

test-all: test test-slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/ready
	$(BIN)/pyright

# The documentation site, into site/; a warning is an error. The variable hides an announcement of the theme.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Runs the commands in README.md and docs/ that need no network, GPU or hours.
docs-check: .venv/ready
	$(BIN)/python docs/check_commands.py

# The small models from nothing; an interrupted training goes on where it stopped.
# PRECISION=bf16-mixed is faster on a GPU, and on a CPU with bf16 matrix units.
PRECISION ?= 32-true
models: .venv/ready
	$(BIN)/python train.py -m method=tiny_encoder,tiny_autoencoder,tiny_denoiser,tiny_language,tiny_captioner trainer.precision=$(PRECISION)
	$(BIN)/python -m lgclip.tiny.install

# The lowest versions that pyproject.toml declares, in an environment of their own, and the fast tests on them. The
# environment is made anew each time: uv keeps what is installed, also where a lower version is declared.
lowest: pyproject.toml
	$(PYTHON) -m venv --clear .lowest
	.lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.lowest/bin/uv pip install --quiet --python .lowest/bin/python --resolution lowest-direct --editable ".[dev]"
	LGCLIP_TEST_TYPES=0 OMP_NUM_THREADS=1 .lowest/bin/python -m pytest --numprocesses auto --dist worksteal -m "not slow and not multiprocess and not browser"

# constraints.txt anew: what is installed here and passes the tests, without the address of any index.
constraints: .venv/ready
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

# The peers that benchmarks/ measures against, in an environment of their own: see benchmarks/RESULTS.md.
benchmarks/.venv/ready: pyproject.toml benchmarks/peers.txt
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable . --requirement benchmarks/peers.txt
	touch $@

.audit/installed:
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit uv cyclonedx-bom
	touch $@

# Known weaknesses of what is installed and of the lowest versions that pyproject.toml allows, asked of osv.dev: the only
# target that needs a network after the installation.
audit: .venv/ready .audit/installed
	.audit/bin/pip-audit --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])") --skip-editable -s osv
	.audit/bin/uv pip compile --quiet --resolution lowest-direct --all-extras pyproject.toml --output-file .audit/lowest.txt
	.audit/bin/pip-audit --requirement .audit/lowest.txt --no-deps --disable-pip -s osv

# What an installation consists of, as a list of components in CycloneDX's form. Short names have no address of an index.
sbom: .venv/ready .audit/installed
	mkdir -p dist
	.audit/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --short-PURLs --output-reproducible \
	    --output-file dist/sbom.cdx.json

clean:
	rm -rf .venv .audit .lowest benchmarks/.venv outputs multirun site
