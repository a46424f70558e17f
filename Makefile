# Two commands on a fresh machine: `make demo` and `make test`. Both set up an environment in .venv first; so does `make docs`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DEMO ?= demo
# Which FAISS: for CUDA where there is a GPU (they cannot be installed together)
FAISS ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: demo test bench lint docs clean

demo: $(STAMP)
	$(BIN)/eddp demo --out $(DEMO)

test: $(STAMP) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -q -a -j auto -W --keep-going -n docs docs/_build/html
	@echo docs/_build/html/index.html

clean:
	rm -rf $(VENV) $(DEMO) build docs/_build *.egg-info

# The stamp is as old as what it was made from: a changed requirement installs again
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eddp needs Python 3.11 or newer; name one with PYTHON=python3.12 make ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(FAISS),test]'
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
