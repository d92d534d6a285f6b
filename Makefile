# Two commands do all the set-up on a machine with Python >= 3.11, make and git:   make demo   and   make test
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python

# Pinned only where there is no torch yet: a torch that somebody chose is never replaced.
CONSTRAIN = $$($(PY) -c 'import torch' 2>/dev/null || echo '-c constraints.txt')

# Every `gptctl` that tests and benchmarks start would compile its modules anew: twice the processor time (measured).
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-fast test-all test-nightly durations check bench bench-tokens faults two-crashes kills soak soak-rehearsal docs release clean

demo: $(VENV)/.trainer            ## a whole run on this machine: plan, train, fetch, cost
	$(VENV)/bin/gptctl run recipes/quickstart.toml --host local --yes
	$(VENV)/bin/gptctl status

# More workers than cores: most tests wait for processes, sockets and deadlines (see tests/support/clock/order.py).
WORKERS ?= 7
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test: $(VENV)/.dev                ## what a change must pass beside `make check`: one story of each feature, real sshd machines
	.ci/system-packages
	GPTCTL_TEST_FORK=1 $(PYTEST) --ignore=tests/architecture -m "not soak and not faults and not nightly"

test-fast: $(VENV)/.dev           ## units and architecture: nothing that starts machines
	$(PYTEST) -n 2 tests/unit tests/architecture

test-nightly: test-all faults soak ## all there is; hours, as root

test-all: $(VENV)/.dev            ## make test and every variant of what it tries once; half an hour
	.ci/system-packages
	$(PYTEST) -m "not soak and not faults"

durations: $(VENV)/.dev           ## tests/durations.json, by which `make test` puts the tests in order
	.ci/system-packages
	$(PYTEST) -m "not soak and not faults" -p tests.support.clock.durations

check: $(VENV)/.dev               ## lint, format, types, layers, house rules, English; no network
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) -m pytest -q -p no:cacheprovider tests/architecture

bench: $(VENV)/.dev               ## figures side by side, as a table and in bench-results/; never a pass or a fail
	.ci/system-packages
	$(PY) -m tests.bench

bench-tokens: $(VENV)/.dev        ## tokens to the baseline's loss, of the stacks in docs/concepts/tokens.md; an hour or more
	$(PY) -m tests.bench.trainer.tokens_to_loss --to bench-results/tokens --python --debian --stories

faults: $(VENV)/.dev              ## the fault table: one row each, on the cloud to rehearse on; about half an hour, as root
	.ci/system-packages
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/faults -m faults -n 3 -p no:cacheprovider --deselect tests/faults/here/test_crashes.py::test_killed_twice

two-crashes: $(VENV)/.dev         ## the command line killed twice in a row: machines bought per intent, machines left
	.ci/system-packages
	$(PY) -m pytest -s tests/faults/here/test_crashes.py::test_killed_twice

kills: $(VENV)/.dev               ## 60 random kills under lists that lie: bought, alive, started, our cost and the cloud's
	.ci/system-packages
	$(PY) -m tests.faults.here.kills --kills $(or $(KILLS),60)

soak-rehearsal: $(VENV)/.dev      ## 200 rented runs killed at random moments; RUNS=10 for fewer
	.ci/system-packages
	$(PY) -m tests.faults.here.soak --runs $(or $(RUNS),200)

soak: $(VENV)/.dev                ## the long tests
	.ci/system-packages
	$(PY) -m pytest -m soak

docs: $(VENV)/.docs               ## the pages that are made from the code, and the site in site/
	$(PY) -m tests.generate_docs
	$(PY) -m orchestrator.cli.manual
	$(VENV)/bin/mkdocs build --strict --quiet

release: $(VENV)/.release         ## check the changelog and the tree, build and check dist/; TAG=1 tags it
	$(PY) scripts/release.py $(if $(TAG),--tag)

clean:                            ## the environment and what tools cached; no run and no checkpoint
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist site

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: gptctl needs Python 3.11 or newer; try: make PYTHON=python3.12 demo"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call quick; a changed pyproject.toml installs again.
$(VENV)/.trainer: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check $(CONSTRAIN) -e '.[trainer]'
	touch $@

# Dependency groups need pip 25.1; the venv of Python 3.11 or 3.12 comes with an older one.
$(VENV)/.dev: $(VENV)/.trainer
	$(PY) -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(PY) -m pip install --quiet --disable-pip-version-check $(CONSTRAIN) --group dev -e '.[trainer]'
	touch $@

$(VENV)/.docs $(VENV)/.release: $(VENV)/.%: $(VENV)/.dev
	$(PY) -m pip install --quiet --disable-pip-version-check --group $*
	touch $@
