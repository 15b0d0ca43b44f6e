# What people type.  Each target does its own set-up on a fresh Debian 12.
#   make demo    a two-node Slurm on this machine, a container job on it, and its time line
#   make test    all tests, the real cluster included        make check   linters and types
#   make test-all    the same, and Slurm's tests with its other releases, too
#   make bench   speed against peers                         make install PREFIX=/opt/hpcwrap
#   make churn   2 000 jobs while nodes and daemons die, and what is left of them

PYTHON ?= /usr/bin/python3
PREFIX ?= /opt/hpcwrap
VENV := .venv
DEV := $(VENV)/.ready

# Debian 12's Slurm is this machine's; `tools/cluster up --slurm` has the others (tools/README.md).
OTHER_SLURMS := 24.11 26.05

.PHONY: demo test test-all test-unit check bench churn install native wheel clean packages

demo: packages $(DEV) native
	tools/demo

test: packages $(DEV) native
	$(VENV)/bin/pytest $(TESTS)

test-all: test
	set -e; for release in $(OTHER_SLURMS); do \
		HPCWRAP_SLURM=$$release $(VENV)/bin/pytest tests/slurm; \
	done

test-unit: $(DEV) native
	$(VENV)/bin/pytest tests/unit

check: packages $(DEV) native
	tools/check

bench: packages $(DEV) native
	tools/packages bench
	@# As an installation does it: where Python may not write bytecode, every run would compile anew.
	$(VENV)/bin/python -m compileall -q hpcwrap
	$(VENV)/bin/python bench/run.py $(BENCH)

churn: packages $(DEV) native
	$(VENV)/bin/python tests/churn/churn.py $(CHURN)

install: native
	PYTHON=$(PYTHON) PREFIX=$(PREFIX) tools/install

native:
	@$(MAKE) --no-print-directory -C native

packages:
	@tools/packages

$(DEV): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist native/build
