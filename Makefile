# Two commands do all set-up: `make demo` and `make test`. Both build .venv from the same pinned versions.
# A machine on which pip would fetch a CUDA build of torch:  make demo PIP_ARGS="--index-url <your CPU index>"
PY ?= python3
PIP ?= $(BIN)/python -m pip
PIP_ARGS ?=
GALLERY ?= 1
BUILDER ?= html
EXTRAS ?= test
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.venv/.ok: pyproject.toml constraints.txt
	$(PY) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "isthmus needs Python >= 3.11; set PY=python3.11")'
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(PIP) install -q --no-compile $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@# pip would on one core; not all files are programs, and few of those left out are ever run
	$(BIN)/python -m compileall -q -j 0 -x '/(tests?|testing|models|_inductor|physics|ray|IPython|debugpy|plotly|pygments|setuptools|sqlalchemy|pip)/' .venv/lib > /dev/null || true
	touch $@

demo: .venv/.ok
	$(BIN)/isthmus demo --out demo-results

test: lint types tests

lint: .venv/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: .venv/.ok
	$(BIN)/pyright --pythonpath $(BIN)/python

# three workers for two cores: some tests wait for other processes
tests: .venv/.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --no-loadscope-reorder

# The site in docs/_build/html, every warning an error; the gallery runs the examples, GALLERY=0 shows them unrun;
# BUILDER=dummy reads all pages and follows all references, and writes nothing, in a third of the time.
docs: .venv/.docs
	OMP_NUM_THREADS=1 GALLERY=$(GALLERY) $(BIN)/python -m sphinx -b $(BUILDER) -n -W --keep-going docs docs/_build/$(BUILDER)

.venv/.docs: .venv/.ok
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	touch $@

# The files of a release in dist/, checked. Equal sources give equal bytes: the time in them is that of the last commit.
wheel: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
wheel: .venv/.ok
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/wheel.py dist

# The same, and the wheel in a new environment, used from another folder.
dist: wheel
	PY="$(PY)" PIP_ARGS="$(PIP_ARGS)" .ci/fresh 'isthmus demo --out results'

clean:
	rm -rf .venv demo-results dist docs/_build docs/api docs/gallery

.PHONY: demo test lint types tests docs wheel dist clean
