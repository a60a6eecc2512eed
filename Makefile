# `make book` builds the site and `make test` runs every test, each from a fresh checkout.
# VENV names the environment to make or reuse; PYTHON the interpreter it is made with.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: book pdf slides draft test lint notebooks sums clean

book: $(VENV)/.installed-book
	$(BIN)/mnlib fetch
	PATH="$(abspath $(BIN)):$$PATH" jupyter-book build book/

# What follows reads the site that `make book` has built: the book as one PDF, printed by Chromium, and
# the slides in the deck's order, each with its verdicts: _build/book.pdf and _build/slides.html.
pdf slides: $(VENV)/.installed-book
	$(BIN)/python scripts/$@.py

# For authors: cells are run again only where they, mnlib, the records or the inputs have changed.
draft: $(VENV)/.installed-book
	$(BIN)/python scripts/draft.py

test: $(VENV)/.installed-test
	$(BIN)/pytest
	$(BIN)/pytest --nbval book/

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy mnlib --exclude mnlib/lab

# Re-run every chapter in place on the embedded tier: do this after a change of mnlib or of a cell.
notebooks: $(VENV)/.installed-test
	$(BIN)/python scripts/execute.py

# List the hashes of ledgers, records and checkpoints: after a change that is meant.
sums:
	cd data && sha256sum *.csv *.toml checkpoints/*.pt runs/*.json | LC_ALL=C sort -k 2 >sha256sums

$(VENV)/.installed-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
