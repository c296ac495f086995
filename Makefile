# `make demo` and `make test` each make .venv, install what they need and do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check test-slow bench clean

demo: $(STAMP)
	$(BIN)/edgegen build digits -o digits.edgegen
	$(BIN)/edgegen run digits.edgegen --seed 1 --batch 100 --columns 10 \
	  --set label=$$($(BIN)/python -c "print(','.join(str(i % 10) for i in range(100)))") -o digits.png
	@echo "$(CURDIR)/digits.edgegen"
	@echo "$(CURDIR)/digits.png"

test: check
	$(BIN)/python -m pytest -m "not slow"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

bench: $(STAMP)
	$(BIN)/pip install --quiet "openvino>=2026.1"
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.quality

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('edgegen needs Python 3.11 or newer, found ' + sys.version.split()[0]) if sys.version_info < (3, 11) else 0"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
