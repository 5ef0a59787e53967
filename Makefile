# make run     the main job: sets up, then pipelines/quickstart.yaml on conf/local.yaml
# make test    sets up, then all tests; make test-long looks at more examples of each property
# make check   ruff, mypy and the layer test
# make bench   the benchmarks (benchmarks/README.md)
# make bench-sweep   a search against Ray Tune and GridSearchCV, which go into .venv-peers
# make chaos   random faults upon real trainings; writes benchmarks/chaos.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
PIPELINE ?= quickstart
JOBS ?= 3

.PHONY: run test test-long check bench bench-sweep chaos setup clean

run: $(READY)
	$(BIN)/ddlflow run $(PIPELINE)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(READY)
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(READY)
	$(BIN)/python benchmarks/all.py

bench-sweep: $(READY) $(PEERS)/.ready
	$(BIN)/python benchmarks/sweep.py --peers $(PEERS)/bin/python $(ARGS)

chaos: $(READY)
	$(BIN)/python tests/chaos/storm --to benchmarks/chaos.md $(ARGS)

setup: $(READY)

# The whole tested version set; made anew when what it is made from changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ddlflow needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

$(PEERS)/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) .ddlflow .pytest_cache .mypy_cache .ruff_cache
