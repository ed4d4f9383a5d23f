# Everything works on a machine with only Python (>= 3.11) and make:
#   make inpaint   fill holes in the bundled faces        (options: make inpaint ARGS="mask=freeform steps=10")
#   make test      ruff, mypy and pytest          (LOCKED=1: with the exact versions of requirements/lock.txt)
#   make docs      the documentation site, in strict mode, in site/;  make docs-serve shows it while you write
#   make lock      requirements/lock.txt from what is installed, after make test;  make audit asks for known holes in it
#   make wheel     the same bytes in dist/ for the same commit;  make test-minimum runs the oldest versions allowed
PY ?= python3
BIN := .venv/bin
CONSTRAINTS := $(if $(LOCKED),-c requirements/lock.txt)
TEST := .venv/test$(if $(LOCKED),-locked)

.PHONY: help inpaint test test-slow test-minimum lock audit wheel docs docs-serve clean
help:
	@grep -E '^#  ' Makefile

.venv/runtime: pyproject.toml
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .
	@touch $@

$(TEST): .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[test]'
	@touch $@

inpaint: .venv/runtime
	$(BIN)/python examples/inpaint_ffhq.py $(ARGS)

test: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

# an environment of its own: everything at its lower bound
.venv/minimum/ready: pyproject.toml requirements/minimum.txt
	$(PY) -m venv .venv/minimum
	.venv/minimum/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/minimum.txt -e '.[test]'
	@touch $@

test-minimum: .venv/minimum/ready
	OMP_NUM_THREADS=1 .venv/minimum/bin/python -m pytest -n 2 tests --ignore tests/docs --ignore tests/experiments

lock: $(TEST)
	$(BIN)/python requirements/lock.py

.venv/tools/ready: requirements/lock.txt
	$(PY) -m venv .venv/tools
	.venv/tools/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/lock.txt hatchling pip-audit
	@touch $@

# strict: a package the service does not answer for is no clean package
audit: .venv/tools/ready
	@.venv/tools/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r requirements/lock.txt || \
	  { echo "audit: not clean: a known hole, or a package that no answer came for (see above)" >&2; exit 1; }

wheel: .venv/tools/ready
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .venv/tools/bin/python -m hatchling build -t wheel -d dist
	cd dist && sha256sum *.whl

.venv/docs: .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: .venv/docs
	$(BIN)/zensical build --clean --strict

docs-serve: .venv/docs
	$(BIN)/zensical serve

clean:
	rm -rf .venv site dist
