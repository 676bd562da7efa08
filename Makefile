# make demo: train two networks on real images and draw the figures.   make test: the whole test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
STEPS ?= 400

.PHONY: demo test lint clean

# The environment, made anew when the dependencies change. Versions are pinned in constraints.txt.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'propkit needs Python 3.11 or newer: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

demo: $(VENV)/.installed
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/python -m propkit train plain44-l2 --data digits --steps $(STEPS) --seed 0 -o $(DEMO)/l2.zarr
	$(BIN)/python -m propkit train plain44-ortho --data digits --steps $(STEPS) --seed 0 -o $(DEMO)/ortho.zarr
	$(BIN)/python -m propkit.figures fig2 $(DEMO)/l2.zarr $(DEMO)/ortho.zarr -o $(DEMO)/fig2.png
	$(BIN)/python -m propkit.figures fig3 $(DEMO)/l2.zarr $(DEMO)/ortho.zarr -o $(DEMO)/fig3.png
	$(BIN)/python -m propkit.figures fig4 $(DEMO)/l2.zarr $(DEMO)/ortho.zarr -o $(DEMO)/fig4.png
	@echo "Two runs and three figures are in $(CURDIR)/$(DEMO): l2.zarr ortho.zarr fig2.png fig3.png fig4.png"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
