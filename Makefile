# make run     the main job: sets up, then pipelines/quickstart.yaml on conf/local.yaml
#              (PIPELINE=particles, ON=a site of conf/)
# make test    sets up, then the tests; make test-long has those of minutes as well, and looks at
#              more examples of each property
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
ON ?= local
JOBS ?= 3

# The set-up compiles nothing (20,000 files, 90 s, of which a run imports a few thousand): the first
# import of a module does, and must be let write it down.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-long check bench bench-sweep chaos setup clean

run: $(READY)$(if $(filter spark%,$(notdir $(ON))),-spark)
	$(BIN)/ddlflow run $(PIPELINE) --on $(ON)

test: $(READY)-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not long" --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(READY)-dev
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(READY)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n 2
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(READY)-dev
	$(BIN)/python benchmarks/all.py

bench-sweep: $(READY)-dev $(PEERS)/.ready
	$(BIN)/python benchmarks/sweep.py --peers $(PEERS)/bin/python $(ARGS)

chaos: $(READY)-dev
	$(BIN)/python tests/chaos/storm --to benchmarks/chaos.md $(ARGS)

setup: $(READY)-dev

# In the tested versions, what a run needs, or tests, or a run on Spark; each made anew when what
# it is made from changes. Tests and Spark need what a run needs, so that then stands as well.
$(READY)-dev: EXTRA := [dev]
$(READY)-spark: EXTRA := [spark]
$(READY) $(READY)-dev $(READY)-spark: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ddlflow needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.$(EXTRA)'
	touch $@ $(READY)

$(PEERS)/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) .ddlflow .pytest_cache .mypy_cache .ruff_cache
