# make demo    a fresh clone to judged recommendations: environment, run, table, next command
# make test    the fast tests (the slow ones: make test-slow; with the types of all calls checked: make test-types)
# make check   format, lint, types, layers, names and docstrings, spelling, generated docs
# make test-sail  preparation on Sail against DuckDB, row by row, in an environment of its own
# make docs    writes the generated pages of docs/
# make studies runs the studies of recipes/studies, STUDY=gap for one, ONLY=b07 for one row; continues where it stopped
# make docs-site  builds the documentation as a site in build/site
# make impressions  the public table of KuaiRand's impressions (benchmarks/impressions.py), about 10 minutes
# make bench   every script of benchmarks/

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt -e
SITE := $(BIN)/sphinx-build -q -W --keep-going -b html docs build/site
# Where the environment forbids compiled files, each worker of the tests compiles all of twofold again.
unexport PYTHONDONTWRITEBYTECODE
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

.PHONY: demo test test-types test-slow test-sail check docs docs-site studies impressions bench

demo: .venv/ready-demo
	$(BIN)/twofold run recipes/kuairand.yaml
	@echo '(`twofold` is $(BIN)/twofold in this clone; `. $(BIN)/activate` puts it on the path)'

# One thread a worker: two workers with two threads each take turns on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
test: .venv/ready-dev
	$(PYTEST) -m 'not slow' --durations 5 --jaxtyping-packages=

# The same tests, which check the types and shapes of all calls, as `pytest` does: a third more time.
test-types: .venv/ready-dev
	$(PYTEST) -m 'not slow' --durations 5

# With Spark, which needs Java 17 on the machine: without it, its tests say so and skip.
test-slow: .venv/ready-slow
	$(PYTEST) -m slow --durations 10 --jaxtyping-packages=

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python docs/make_recipe.py --check
	$(BIN)/python docs/make_results.py --check
	$(BIN)/python docs/make_benchmarks.py --check
	$(BIN)/python docs/make_studies.py --check
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_words.py
	$(SITE)

docs: .venv/ready-demo
	$(BIN)/python docs/make_recipe.py
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_benchmarks.py
	$(BIN)/python docs/make_studies.py

studies: .venv/ready-dev
	$(BIN)/python docs/make_studies.py run $(STUDY) $(if $(ONLY),--only $(ONLY))

# A link or reference that leads nowhere is an error.
docs-site: .venv/ready-dev
	$(SITE)

# Sail needs no Java, and its client of Spark an environment of its own.
test-sail: .venv-sail/ready
	OMP_NUM_THREADS=1 .venv-sail/bin/python -m pytest -m slow tests/prepare/test_sail.py

.venv-sail/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-sail
	.venv-sail/bin/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[train,sail,dev]'
	@touch $@

impressions: .venv/ready-dev
	$(PIP) . 'lightgbm>=4.5'
	$(BIN)/python benchmarks/impressions.py
	$(BIN)/python docs/make_results.py

bench: .venv/ready-dev
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# A stamp is younger than what it was installed from, so nothing is installed twice.
.venv/ready-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) '.[train,serve]'
	@touch $@

.venv/ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) '.[train,serve,otel,explain,qdrant,dev]'
	@touch $@ .venv/ready-demo

.venv/ready-slow: .venv/ready-dev
	$(PIP) '.[train,serve,otel,explain,qdrant,spark,mlflow,dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "twofold needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Say which to use: make demo PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
