# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs clean

# The stamp is newer than pyproject.toml once everything that it names is installed.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

demo: .venv/installed
	$(BIN)/sparsemarg demo

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

API := layers layers.functional layers.solvers oracles oracles.base models models.estimators models.likelihood verification

docs: .venv/installed
	$(BIN)/pdoc --template-directory docs --output-directory build/docs $(addprefix sparsemarg.,$(API))

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
