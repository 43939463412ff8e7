# make demo, make test: everything from a fresh checkout. Needs Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KERNEL_SOURCES := CMakeLists.txt $(shell find csrc -type f)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-main test-compile test-interpreter lint format bench clean

help:
	@echo "make demo    train an embedding on glyphs and show what it retrieves (about a minute)"
	@echo "make test    all tests: main, compiled for seven GPUs without one, interpreted kernels"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite what it can"
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

test: test-main test-compile test-interpreter

test-main: $(VENV)/installed
	$(BIN)/python -m pytest -q --ignore tests/test_triton_compile.py

# Several kernels at a time: the compiler uses one core each.
test-compile: $(VENV)/installed
	$(BIN)/python -m pytest -q -n auto tests/test_triton_compile.py

# A process of its own: Triton decides at import whether kernels are interpreted.
test-interpreter: $(VENV)/installed
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m backends

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	$(BIN)/python -m bench loss

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
