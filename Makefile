# Everything works on a machine with only Python (>= 3.11) and make:
#   make inpaint   fill holes in the bundled faces        (options: make inpaint ARGS="mask=freeform steps=10")
#   make test      ruff, mypy and pytest
#   make docs      the documentation site, in strict mode, in site/;  make docs-serve shows it while you write
PY ?= python3
BIN := .venv/bin

.PHONY: help inpaint test test-slow docs docs-serve clean
help:
	@grep -E '^#  ' Makefile

.venv/runtime: pyproject.toml
	test -d .venv || $(PY) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/test: .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

inpaint: .venv/runtime
	$(BIN)/python examples/inpaint_ffhq.py $(ARGS)

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

.venv/docs: .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: .venv/docs
	$(BIN)/zensical build --clean --strict

docs-serve: .venv/docs
	$(BIN)/zensical serve

clean:
	rm -rf .venv site
