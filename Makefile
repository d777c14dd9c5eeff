# Two commands need nothing but Python 3.11 or newer, make and a C/C++ compiler: `make demo`, `make test`.

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do $$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
endif
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz check format lint types clean

demo: $(VENV)/ready ## convert two toy models to MLX and GGUF, ask both, compare
	$(BIN)/localq demo

test: $(VENV)/ready ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

fuzz: $(VENV)/ready ## run the property tests with 50 times as many examples, different ones each time
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=random

check: format lint types test ## what CI runs

format: $(VENV)/ready
	$(BIN)/ruff format --check .

lint: $(VENV)/ready
	$(BIN)/ruff check .

types: $(VENV)/ready
	$(BIN)/mypy

$(VENV)/ready: pyproject.toml setup.py $(wildcard localq/conversion/*.[ch])
	@test -n "$(PYTHON)" && $(PYTHON) $(NEW_ENOUGH) \
		|| { echo "localq needs Python 3.11 or newer, and finds none. Try: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV). llama-cpp-python is compiled here, which takes some minutes; later runs don't repeat it."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build localq/conversion/_kquants_*.so localq/conversion/_mlx_search_*.so
