# make demo: train two networks on real images and draw the figures.   make test: the whole test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
STEPS ?= 400

.PHONY: demo gallery test lint clean

# The environment, made anew when the dependencies change. Versions are pinned in constraints.txt.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'propkit needs Python 3.11 or newer: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

# One thread a run: these networks are too small to share one well. All probes, every step.
TRAIN := $(BIN)/python -m propkit train --data digits --steps $(STEPS) --every 1 --seed 0 --threads 1 --overwrite

demo: $(VENV)/.installed
	mkdir -p $(DEMO)
	$(TRAIN) plain44-l2 -o $(DEMO)/l2.zarr
	$(TRAIN) plain44-ortho -o $(DEMO)/ortho.zarr
	for figure in fig2 fig3 fig4; do \
		$(BIN)/python -m propkit.figures $$figure $(DEMO)/l2.zarr $(DEMO)/ortho.zarr -o $(DEMO)/$$figure.png || exit 1; \
	done
	@echo "Two runs and their figures are in $(CURDIR)/$(DEMO): l2.zarr ortho.zarr fig2.png fig3.png fig4.png"

# Every figure of docs/figures.md. Some minutes on one core; runs that are in demo/gallery already are kept.
gallery: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python docs/gallery.py $(DEMO)/gallery

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
