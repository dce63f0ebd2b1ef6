# On a machine with nothing but Python >= 3.10: `make quickstart` or `make test`. No third step.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
# nproc believes OMP_NUM_THREADS, which the gate sets to 1 for the tests' nets.
WORKERS ?= $(shell cores=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2); echo $$((cores < 4 ? cores : 4)))
ROOMS := supernet search train experiments analysis

.DEFAULT_GOAL := help
.PHONY: help quickstart test long timing check format cifar10 benchmark record clean

help: ## say what can be made
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(VENV)/installed ## install, then run the whole line on 1,797 digits (3 minutes; 8 on a noisy machine) and say where the report is
	$(BIN)/slimformer quickstart

test: $(VENV)/installed-test ## install, then run the tests
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

long: $(VENV)/installed-test ## run the tests that need minutes or the real images
	$(BIN)/python -m pytest -m long --timeout=7200

timing: $(VENV)/installed-test ## run the tests that assert on measured time (on an idle machine)
	$(BIN)/python -m pytest -m timing

check: $(VENV)/installed-test ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/installed-test ## let ruff format and repair what it can
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

cifar10: $(VENV)/installed ## run the CIFAR-10 experiment (90 minutes on two cores)
	$(BIN)/slimformer run experiments/cifar10.yaml

benchmark: $(VENV)/installed ## time a supernet's training step against its largest model's (on an idle machine)
	$(BIN)/python -m experiments.benchmarks.supernet_step

record: ## keep the small files of a run: make record RUN=runs/cifar10
	@test -n "$(RUN)" && test -f "$(RUN)/evaluation.json" || { echo "make record RUN=runs/NAME, of a finished run"; exit 2; }
	rm -rf experiments/records/$(notdir $(RUN))
	mkdir -p experiments/records/$(notdir $(RUN))
	cd $(RUN) && tar cf - *.json trajectory*.jsonl report.html architectures delivered/*/*.yaml delivered/*/*.json \
		supernet/*.csv models/*/*.csv \
		| tar xf - -C $(CURDIR)/experiments/records/$(notdir $(RUN))
	$(BIN)/python -c 'from analysis.report import write_report; write_report("experiments/records/$(notdir $(RUN))")'

clean: ## remove .venv and every cache; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The tests' nets are tiny: one thread a process, and a few processes. The tools' own settings win.
test: export OMP_NUM_THREADS ?= 1
long: export OMP_NUM_THREADS ?= 2

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "slimformer needs Python 3.10 or newer: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) cannot make a venv (on Debian: apt install python3-venv)" >&2; exit 2; }

# Stamps: pip runs once, and again when setup.py changes.
$(VENV)/installed: setup.py | $(BIN)/python
	@echo "installing slimformer into $(VENV) (about two minutes, once)"
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: setup.py | $(BIN)/python
	@echo "installing slimformer and its tests' needs into $(VENV) (about two minutes, once)"
	$(PIP) --editable '.[test]'
	@touch $(VENV)/installed $@
