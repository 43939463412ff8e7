# make demo, make test: everything from a fresh checkout. Needs Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPP_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp')
KERNEL_SOURCES := CMakeLists.txt $(shell find csrc -type f -not -path 'csrc/tests/*')
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-main test-cpp test-compile test-interpreter lint format bench clean

help:
	@echo "make demo    train an embedding on glyphs and show what it retrieves (about a minute)"
	@echo "make test    all tests: main, C++, compiled for seven GPUs without one, interpreted kernels"
	@echo "make lint    ruff, clang-format and mypy"
	@echo "make format  let ruff and clang-format rewrite what they can"
	@echo "make bench   time every backend beside mm, eager, torch.compile and"
	@echo "             pytorch-metric-learning (about ten minutes; leave the machine alone)"

# One environment with everything. constraints.txt pins PyTorch, so that nothing larger is fetched;
# PyTorch comes first, so that nothing else asks for another.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@touch $@

# Rebuilt when the requirements or the C++ kernel change.
$(VENV)/installed: $(VENV)/torch pyproject.toml setup.py $(KERNEL_SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[test,examples,bench,lint]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/glyph_retrieval.py

test: test-main test-cpp test-compile test-interpreter

test-main: $(VENV)/installed
	$(BIN)/python -m pytest -q --ignore tests/test_triton_compile.py

# The C++ kernel alone, optimised and under sanitizers, with AMX imitated in software.
CTEST_FLAGS := -G Ninja -DCIRCLE_KERNELS_MODULE=OFF -DCIRCLE_KERNELS_TESTS=ON -DCIRCLE_IMITATE_AMX=ON
test-cpp: $(VENV)/installed
	export PATH="$(abspath $(BIN)):$$PATH" && \
	cmake -S . -B build/ctest $(CTEST_FLAGS) && \
	cmake --build build/ctest && ctest --test-dir build/ctest -j2 --output-on-failure && \
	cmake -S . -B build/ctest-sanitized $(CTEST_FLAGS) \
		-DCIRCLE_KERNELS_SANITIZE=address,undefined && \
	cmake --build build/ctest-sanitized && \
	ctest --test-dir build/ctest-sanitized -j2 --output-on-failure

# Several kernels at a time: the compiler uses one core each.
test-compile: $(VENV)/installed
	$(BIN)/python -m pytest -q -n auto tests/test_triton_compile.py

# A process of its own: Triton decides at import whether kernels are interpreted.
test-interpreter: $(VENV)/installed
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m backends

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

bench: $(VENV)/installed
	$(BIN)/python -m bench loss

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
