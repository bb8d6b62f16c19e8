# make demo    the whole path on a small generated corpus, into demo-work/report.html
# make test    every fast test, in parallel      make lint   ruff and the type check
# make test-slow, make test-slurm (a real Slurm daemon on the loopback address), make bench, make clean
# make test-upgrades  files made by earlier versions of mscale
# make test-wheel     the built package, installed and used away from the checkout
# Each sets up what it needs in .venv; a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= demo-work
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-upgrades test-slurm test-wheel lint bench clean

demo: $(VENV)/.demo
	$(BIN)/mscale demo --workdir $(WORKDIR)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not upgrades"

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

test-upgrades: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m upgrades

test-slurm: $(VENV)/.test
	tests/sweeps/slurm/run.sh $(BIN)/python -m pytest tests/sweeps/slurm

test-wheel: | $(BIN)/python
	tests/wheel/run.sh $(BIN)/python

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	@$(PIP_INSTALL) -e ".[bench]"
	@for file in benchmarks/*.py; do echo "== $$file" >&2; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "mscale needs Python 3.11 or newer; '$(PYTHON)' is missing or older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null \
	       && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } \
	  || { rm -rf $(VENV); echo "cannot make a virtual environment. Debian keeps that in a package of its own: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.demo: setup.py constraints.txt | $(BIN)/python
	@echo "installing what the demo needs into $(VENV) (about 1.3 GB, a minute or two) ..."
	@start=$$(date +%s); $(PIP_INSTALL) -e '.[analysis]' && touch $@ && echo "installed in $$(($$(date +%s) - start)) s"

$(VENV)/.test: setup.py constraints.txt | $(BIN)/python
	@echo "installing what the tests need into $(VENV) (about 4 GB with TensorFlow, a few minutes) ..."
	@start=$$(date +%s); $(PIP_INSTALL) -e '.[analysis,data,test,dev]' && touch $@ $(VENV)/.demo && echo "installed in $$(($$(date +%s) - start)) s"
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y chromium >/dev/null; } \
	  || echo "no Chromium here: the test that opens the report in a browser is skipped"
