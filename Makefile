# `make demo`, `make test` and `make docs`; each sets up .venv on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.docs-installed

.PHONY: demo test soak lint docs clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

test: $(STAMP)
	$(BIN)/ruff check src tests benchmarks experiments examples docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src docs examples README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/python -m pytest -n 2

$(DOCS): $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: $(DOCS)
	$(BIN)/mkdocs build --strict --quiet

# Damaged files, then jobs that are killed, half an hour each; PLAIT_SOAK_MINUTES and PLAIT_SOAK_SEED choose otherwise.
soak: export PLAIT_SOAK_MINUTES ?= 30
soak: $(STAMP)
	files=0; $(BIN)/python -m tests.hardening.soak || files=1; \
	$(BIN)/python -m pytest -s tests/hardening/test_kills.py -k killed_for_a_while && exit $$files

demo: $(STAMP)
	$(BIN)/plait demo -o demo --overwrite

clean:
	rm -rf $(VENV) demo site
