# Two commands for a fresh clone: `make demo` and `make test`. Both make what they need in .venv and
# use it again the next time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NATIVE := $(shell find csrc -type f) setup.py build_backend.py pyproject.toml
CXX_FILES := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test test-slow check format clean

demo: $(VENV)/.installed
	@echo "== a photo to .gmx and back, with the bundled weights"
	$(BIN)/python benchmarks/demo.py demo
	@echo "== coding speed (short: 3 repeats)"
	$(BIN)/python benchmarks/coding_speed.py --repeats 3

test: $(VENV)/.installed check
	@echo "== tests"
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed
	@echo "== all tests, the slow ones too"
	$(BIN)/python -m pytest -m "slow or not slow"

check: $(VENV)/.installed
	@echo "== format and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy groupedmixer_ext python/groupedmixer
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The native part is rebuilt when one of its sources is newer than the last installation.
$(VENV)/.installed: $(NATIVE)
	@echo "== setting up $(VENV): dependencies, then the native build (some minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m groupedmixer_ext.info
	@touch $@

clean:
	rm -rf $(VENV) build demo *.egg-info groupedmixer_ext/*.so groupedmixer_ext/_build_info.py
