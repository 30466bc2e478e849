# Everything here runs in .venv, which is made on first use and brought up to date when pyproject.toml or
# constraints.txt changes. Written for GNU make 3.81, the one that macOS ships.

SHELL := bash

# The python that makes .venv. When not given, the first of these that is new enough.
ifeq ($(origin PYTHON),undefined)
PYTHONS := python3 python3.13 python3.12 python3.11 python
else
PYTHONS := $(PYTHON)
endif

VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)
# The integrations are distributions of their own; their tests run with ours.
INTEGRATIONS := -e "integrations/langchain-searchr3[test]" -e "integrations/llama-index-embeddings-searchr3[test]" \
	-e "integrations/searchr3-haystack[test]"
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# Of pip's hundreds of lines these tell how far it is; errors and warnings go to stderr and are not filtered.
PIP_PROGRESS := sed -n -e '/->/!s/^Collecting \([A-Za-z0-9._-]*\).*/    collecting \1/p' \
	-e 's/^ *Downloading \(.*[0-9] MB)\).*/    downloading \1/p' \
	-e 's/^Installing collected packages:.*/    unpacking and compiling/p'

# Each test computes on one thread, so two at a time take two cores. "worksteal" leaves the tests of a file together for as
# long as it can: what they prepare in common (a small training run, say) is then prepared once.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean
# Two pips at work in one environment break it.
.NOTPARALLEL:
# A recipe that fails half-way leaves nothing that looks finished.
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=python3.12    the Python (3.11 or newer) to make .venv with'
	@echo '  TORCH_INDEX=<url>    package index to take torch from, for example one with CPU builds only'
	@echo '  ARGS="-k engine -x"  further arguments for pytest or the benchmarks: make test ARGS=...'
	@echo '  DATA=<folder>        for bench: the folder of evaluation sets (BEIR layout; scifact and perspectrum among them)'

demo: $(VENV)/.stamp-demo ## the packaged model thinks about six questions and finds the answers in Python's own docs
	@$(BIN)/searchr3 demo

test: $(VENV)/.stamp-dev ## run the tests, offline; the heavy ones are left out
	$(PYTEST) -m "not slow and not timing" $(ARGS)
	@# With -k there may be none, which is status 5.
	$(PYTEST) -n 0 -m "timing and not slow" $(ARGS) || [ $$? -eq 5 ]

test-all: $(VENV)/.stamp-dev ## run the heavy tests that make test leaves out, offline
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.stamp-dev ## check style, formatting, types and known security mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src training benchmarks integrations/*/l* examples

bench: $(if $(DATA),$(VENV)/.stamp-dev) ## time every workload against its peers: make bench DATA=<folder> (hours)
	@if [ -z "$(DATA)" ]; then \
		echo "DATA is missing: the folder that holds the evaluation sets, each a BEIR-layout folder (scifact/," >&2; \
		echo "perspectrum/, ...): make bench DATA=path/to/eval ARGS=--quick" >&2; \
		exit 1; \
	fi
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m benchmarks --data "$(DATA)" --out results $(ARGS)

clean: ## remove build outputs and caches; .venv and runs/ stay
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests training benchmarks examples integrations -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@for python in $(PYTHONS); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "==> Making $(VENV) with $$("$$python" --version)"; \
			exec "$$python" -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "Python 3.11 or newer is needed, and none of these is: $(PYTHONS)." >&2; \
	echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1

# torch goes first and alone: it is by far the largest download, the one to watch (pip draws its progress bar), and the
# one that may have to come from another index. Nothing after it can replace it, for constraints.txt names its version.
$(VENV)/.stamp-torch: constraints.txt $(BIN)/python
	@echo "==> Installing $(TORCH)"
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

$(VENV)/.stamp-demo: pyproject.toml $(VENV)/.stamp-torch
	@echo "==> Installing searchr3-embed and what it needs (a few minutes the first time)"
	@set -o pipefail; $(PIP) -c constraints.txt -e . | $(PIP_PROGRESS)
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml $(wildcard integrations/*/pyproject.toml) $(VENV)/.stamp-torch
	@echo "==> Installing searchr3-embed with all that training, evaluation and tests need (minutes the first time)"
	@set -o pipefail; $(PIP) -c constraints.txt -e ".[dev,train,eval,serve]" $(INTEGRATIONS) | $(PIP_PROGRESS)
	@touch $@ $(VENV)/.stamp-demo
