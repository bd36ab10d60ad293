# The five commands. Each installs what it needs first; a second run finds it there.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench install lock clean

VENV ?= .venv
PYTEST_ARGS ?=
# Most tests wait for processes and sandboxes of their own: more workers than cores are the faster.
WORKERS ?= 4
export VENV

help:
	@echo "make demo      start everything, play one session, print what happens (no key, no Docker, no network needed)"
	@echo "make test      every test this machine can run; what it cannot is listed as skipped, with the reason"
	@echo "make check     format, lint, types, layers"
	@echo "make bench     measure the claims"
	@echo "make install   put the galley command into $(VENV)/bin"

demo: $(VENV)/.installed-run
	@$(VENV)/bin/galley demo $(DEMO_ARGS)

test: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m bench $(BENCH_ARGS)

install: $(VENV)/.installed-run
	@echo "$(abspath $(VENV))/bin/galley"

# For maintainers: choose new versions.
lock: $(VENV)/.installed-dev
	scripts/lock

clean:
	rm -rf $(VENV)

# The development set holds all of the running set, so whoever has it needs nothing more to run.
$(VENV)/.installed-run: requirements/galley.lock requirements/uv.lock pyproject.toml scripts/install
	@if [ -e $(VENV)/.installed-dev ]; then scripts/install dev && touch $(VENV)/.installed-dev; else scripts/install run; fi
	@touch $@

$(VENV)/.installed-dev: requirements/dev.lock requirements/uv.lock pyproject.toml scripts/install
	@scripts/install dev
	@touch $@ $(VENV)/.installed-run
