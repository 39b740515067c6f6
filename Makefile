# make demo   the main job: its own virtual environment, build, run; results in demo-output/
# make test   its own virtual environment, build, all tests
# make lint   ruff and clang-format, versions pinned in pyproject.toml
# make cuda   compiles every CUDA source and links _C_cuda (needs nvcc, not a GPU)
# make clean  removes what these made
#
# Needed beforehand: Python 3.10 or later, a C++17 compiler, make, and pip's access to a package
# index. PYTHON chooses the interpreter; TORCH what is installed when the new environment has no
# torch (another version, or a file); VENV_FLAGS=--system-site-packages uses one already there.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV_FLAGS ?=
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
# Processes that share the tests, a file at a time and in the order of their names, in which what some
# need is compiled beside them.
TEST_WORKERS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test lint cuda clean

ROOT := $(CURDIR)
# Threads of torch that wait asleep. Spinning ones are no faster on an idle machine and 30 times
# slower on a busy one (EfficientNet-Lite0 forward on two cores: .02 and .69 seconds).
export OMP_WAIT_POLICY ?= passive
# NumPy's threads spin whatever that says, and yield their core to whoever else computes: with one
# core busy, eigenvalues of a matrix of 500 take ten times as long as by one thread.
export OPENBLAS_NUM_THREADS ?= 1
SOURCES := setup.py pyproject.toml README.md LICENSE \
  $(shell find csrc mvnrob -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.py')
# Python compiles what is imported; all that torch and the extras bring would take half a minute.
PIP = -m pip --disable-pip-version-check install --quiet --no-compile

# One pattern serves both environments: .venv-demo gets the extra "demo", .venv-test "test".
# The build needs torch, which is why it is not isolated (setup.py says more).
.venv-%/tools.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, $(PYTHON) is " + sys.version)'
	@echo 'mvnrob: making .venv-$* (torch takes the longest)'
	@$(PYTHON) -m venv --clear $(VENV_FLAGS) .venv-$*
	@.venv-$*/bin/python $(PIP) 'setuptools>=77' wheel ninja numpy
	@.venv-$*/bin/python -c 'import torch' 2>/dev/null || .venv-$*/bin/python $(PIP) '$(TORCH)'
	@touch $@

# build/lib* goes first: setuptools packs whatever lies there, files deleted since included. The
# object files beside it stay, so a rebuild compiles what changed.
.venv-%/installed.stamp: .venv-%/tools.stamp $(SOURCES)
	@rm -rf build/lib* build/bdist*
	@echo 'mvnrob: compiling and installing into .venv-$*'
	@.venv-$*/bin/python $(PIP) --no-build-isolation '.[$*]'
	@touch $@

.PRECIOUS: .venv-%/tools.stamp .venv-%/installed.stamp

# Run from inside the environment's folder: `python -m` puts the current directory on the path, and
# the source tree's mvnrob/ has no native module.
demo: .venv-demo/installed.stamp
	cd .venv-demo && bin/python -m mvnrob.demo --out '$(ROOT)/demo-output' $(DEMO_FLAGS)

# The tests come from the tree, mvnrob from the environment. So pytest is started by its script, in
# tests/: neither it nor a subprocess of a test then finds the source tree's mvnrob/, which has no
# native module, before the installed one. tests/native is compiled by a fixture of its own.
test: .venv-test/installed.stamp
	cd tests && ../.venv-test/bin/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

# The versions are the extra "lint"; installing that extra by name would build the package.
LINT_TOOLS = $(shell sed -n 's/^lint = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",')
CPP_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.venv-lint/tools.stamp: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lint
	.venv-lint/bin/python $(PIP) $(LINT_TOOLS)
	touch $@

lint: .venv-lint/tools.stamp
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/clang-format --dry-run -Werror $(CPP_FILES)

# Kernels are compiled anew, so that the assembler's register and spill report is complete.
cuda: .venv-test/tools.stamp
	rm -rf build/cuda build/temp*/*.cu.o
	mkdir -p build/cuda
	NVCC_APPEND_FLAGS='-Werror all-warnings' MVNROB_CUDA=1 \
	  .venv-test/bin/python setup.py build_ext --build-lib build/cuda 2>&1 | tee build/cuda/log.txt
	.venv-test/bin/python .ci/check_binaries.py registers build/cuda/log.txt .ci/registers.txt
	.venv-test/bin/python .ci/check_binaries.py abi build/cuda/mvnrob

clean:
	rm -rf .venv-demo .venv-test .venv-lint build demo-output mvnrob.egg-info
