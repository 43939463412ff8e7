# make demo, make test: everything from a fresh checkout. Needs Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPP_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp')
KERNEL_SOURCES := CMakeLists.txt $(shell find csrc -type f -not -path 'csrc/tests/*')
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo demo-classes test test-main test-cpp test-cpp-plain test-cpp-sanitized \
	test-cpp-module test-arm test-compile test-interpreter lint format docs wheels \
	all-wheels check-release bench clean

help:
	@echo "make demo    train an embedding on glyphs and show what it retrieves (about a minute)"
	@echo "make demo-classes  train three losses on class labels and verify pairs (two minutes)"
	@echo "make test    all tests: main, C++, compiled for seven GPUs without one, interpreted kernels"
	@echo "make test-cpp  of these the C++ kernel's own, plain and under sanitizers (four minutes)"
	@echo "make test-arm  the C++ kernel's own on an emulated 64-bit ARM; not part of test"
	@echo "             (16 minutes of CPU time)"
	@echo "make lint    ruff, clang-format, mypy, and counts of arguments, lines and files"
	@echo "make format  let ruff and clang-format rewrite what they can"
	@echo "make wheels  a source distribution and a wheel for this Python, checked and tried"
	@echo "make docs    the documentation as a site, build/site/index.html; opens without a server"
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
		--editable '.[test,examples,bench,lint,docs]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/glyph_retrieval.py

demo-classes: $(VENV)/installed
	$(BIN)/python examples/glyph_classification.py

test: test-main test-cpp test-compile test-interpreter

test-main: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile \
		--ignore tests/backends/triton/test_compile.py

# The C++ kernel with AMX imitated: without Python as it is installed, and with every access and shift
# watched; then the watched one from Python.
test-cpp: test-cpp-plain test-cpp-sanitized test-cpp-module

CPP_BUILD = $(BIN)/cmake -S . -B build/$(1) -G Ninja \
	-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCIRCLE_KERNELS_TESTS=ON -DCIRCLE_IMITATE_AMX=ON
CPP_PLAIN = $(call CPP_BUILD,test-cpp-plain) -DCIRCLE_KERNELS_MODULE=OFF
CPP_SANITIZED = $(call CPP_BUILD,test-cpp-sanitized) -DCIRCLE_KERNELS_MODULE=ON \
	-DCIRCLE_KERNELS_SANITIZE=address,undefined -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)

test-cpp-plain: $(VENV)/installed
	$(CPP_PLAIN)
	$(BIN)/cmake --build build/$@
	$(BIN)/ctest --test-dir build/$@ --parallel 2 --output-on-failure

test-cpp-sanitized: $(VENV)/installed
	$(CPP_SANITIZED)
	$(BIN)/cmake --build build/$@
	$(BIN)/ctest --test-dir build/$@ --parallel 2 --output-on-failure

# A share of the Python tests, in a copy of what they need with the module of test-cpp-sanitized.
# Python is not sanitised, so the runtime (GCC's) is loaded before it, and is not asked for leaks. Left
# out of those marked: memory that a sanitised module does not keep, limits on memory and deaths, which
# the runtime has its own ways with, steps that take long, and tensors without memory.
MODULE_SELECTION := not (tiled or fake or next_step or next_one or leave_nothing or and_a_death \
	or little_memory or ctrl_c) \
	and (not test_oracle or random-19 or clusters-67 or mixed)
RUNTIME = $(shell $(CXX) -print-file-name=$(1))

test-cpp-module: $(VENV)/installed
	$(CPP_SANITIZED)
	$(BIN)/cmake --build build/test-cpp-sanitized --target _cpu
	rm -rf build/$@ && mkdir -p build/$@
	cp -r circle_kernels bench tests pyproject.toml build/$@
	rm -f build/$@/circle_kernels/_cpu*.so
	cp build/test-cpp-sanitized/_cpu*.so build/$@/circle_kernels
	cd build/$@ && export LD_PRELOAD="$(call RUNTIME,libasan.so) $(call RUNTIME,libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 OMP_NUM_THREADS=2 && \
		$(abspath $(BIN))/python -c "import circle_kernels._cpu as module; \
			assert module.__file__.startswith('$(CURDIR)/build/$@/'), module.__file__" && \
		$(abspath $(BIN))/python -m pytest -q -n auto -m sanitized tests/operation tests/backends \
			-k "$(MODULE_SELECTION)"

# The same tests for 64-bit ARM, cross-compiled and emulated.
test-arm: $(VENV)/installed
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || { \
		echo "make $@ needs Debian's packages g++-aarch64-linux-gnu and qemu-user" >&2; exit 1; }
	$(call CPP_BUILD,$@) -DCIRCLE_KERNELS_MODULE=OFF \
		-DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build build/$@
	$(BIN)/ctest --test-dir build/$@ --parallel 2 --output-on-failure

# Several kernels at a time: the compiler uses one core each.
test-compile: $(VENV)/installed
	$(BIN)/python -m pytest -q -n auto tests/backends/triton/test_compile.py
	$(BIN)/python -m bench kernels --check

# A process of its own: Triton decides at import whether kernels are interpreted.
test-interpreter: $(VENV)/installed
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m backends

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/shape.py
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# A broken link, a missing docstring of a public name: every warning is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A source distribution and a wheel for this Python, checked, installed into a clean environment and
# tried there. Wheels for every Python come from cibuildwheel, by what pyproject.toml says.
WHEELS := build/wheels
RELEASE_BIN := build/release/bin
RELEASE_TOOLS := tools/release-tools.txt
wheels:
	rm -rf $(WHEELS) build/clean && mkdir -p $(WHEELS)
	$(PYTHON) -m venv build/release
	$(RELEASE_BIN)/pip install --quiet --requirement $(RELEASE_TOOLS)
	$(RELEASE_BIN)/pyroma --min 9 .
	$(RELEASE_BIN)/python -m build --outdir $(WHEELS)/built
	PATH="$(abspath $(RELEASE_BIN)):$$PATH" $(RELEASE_BIN)/auditwheel repair \
		--exclude libgomp.so.1 --wheel-dir $(WHEELS) $(WHEELS)/built/*.whl
	mv $(WHEELS)/built/*.tar.gz $(WHEELS)
	$(RELEASE_BIN)/twine check --strict $(WHEELS)/*.whl $(WHEELS)/*.tar.gz
	$(RELEASE_BIN)/check-wheel-contents $(WHEELS)/*.whl
	$(PYTHON) -m venv build/clean
	build/clean/bin/pip install --quiet --constraint constraints.txt torch
	build/clean/bin/pip install --quiet $(WHEELS)/*.whl
	cd build/clean && bin/python ../../tools/smoke_wheel.py

# In containers, for every Python: what the workflow runs, and what needs Docker elsewhere.
all-wheels:
	$(PYTHON) -m venv build/release
	$(RELEASE_BIN)/pip install --quiet --requirement $(RELEASE_TOOLS)
	$(RELEASE_BIN)/cibuildwheel --output-dir $(WHEELS)

# Before anything is uploaded: what docs/releasing.md asks for is there.
check-release:
	$(PYTHON) tools/check_release.py $(TAG)

bench: $(VENV)/installed
	$(BIN)/python -m bench loss

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
