# Two commands for a fresh clone: `make demo` and `make test`. Both make what they need in .venv and
# use it again the next time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NATIVE := $(shell find csrc -type f) setup.py build_backend.py pyproject.toml
CXX_FILES := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test test-slow test-gpu sanitize-gpu gpu-check check format clean

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

test-gpu: $(VENV)/.installed
	@echo "== tests that need a GPU"
	$(BIN)/python -m pytest -m gpu

# The checkers slow kernels down a hundredfold: operators on small tensors only.
SANITIZED := tests/test_gpu_ops.py -m gpu -k "of_a_tensor or in_place or nothing_in"

sanitize-gpu: $(VENV)/.installed
	@command -v compute-sanitizer >/dev/null || { \
	  echo "compute-sanitizer is missing: it is part of the CUDA toolkit (put its bin on PATH)"; \
	  exit 1; }
	for tool in memcheck racecheck initcheck synccheck; do \
	  echo "== compute-sanitizer, $$tool"; \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    --target-processes all $(BIN)/python -m pytest --timeout 1800 $(SANITIZED) || exit 1; \
	done

# On a machine as it is, without .venv: build, tests and benchmarks in under eight minutes.
gpu-check:
	benchmarks/gpu_check.sh --out gpu_check.json

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
