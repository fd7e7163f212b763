# make demo and make test set up everything they need in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# The stamp names the folder it was made in: commands in a copied .venv would run the old folder's code.
MOVED := $(filter-out $(CURDIR),$(shell cat $(STAMP) 2>/dev/null))

.PHONY: setup demo test lint format results $(if $(MOVED),$(STAMP))

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "specmask needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(if $(MOVED),--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,plot,pretrained]'
	@echo '$(CURDIR)' > $@

demo: $(STAMP)
	$(BIN)/specmask demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/results.md and its figures, and README's picture, from the results files; no model is run.
results: $(STAMP)
	$(BIN)/python -m specmask.bench.results
