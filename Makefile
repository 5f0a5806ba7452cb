# make demo    sets everything up, then segments an invented scan with one click
# make test    sets everything up, then runs every check, the documentation build and every test
# make check   the same without the slow parts, in about two minutes
# make docs    builds the documentation into site/
# make slicer-env   the environment in which the 3D Slicer module is tested, 1.1 GB; make test makes it
# make bench   times what this project promises about time and memory; wants a quiet machine
# make clean   removes what the others have made, the environment included
#
# All of them need Python 3.10 to 3.13 and make; PYTHON=python3.12 chooses one.

VENV := .venv
BIN := $(VENV)/bin
# An environment that is there already is kept; otherwise the first Python on the path makes one.
PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
# Its version is part of the stamp's name, so that choosing another Python makes a new environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
READY := $(VENV)/.ready-$(VERSION)
CONSTRAINTS := .ci/constraints.txt
# What the tests want beside the package itself.
EXTRAS := itk,dicom,train,serve,openvino,dev
SLICER := .venv-slicer
SLICER_PACKAGES := 'trame-slicer[standalone]==2.0.0' pytest
# Two workers with one thread each: the cores that there surely are. UTF-8 whatever the locale says, or is left at by a
# library: SimpleITK sets the one of a thread to C when it writes a DICOM file.
PYTEST := OMP_NUM_THREADS=1 PYTHONUTF8=1 $(BIN)/python -m pytest -q -n 2

# Reaches the environments in which packages are built, too: nothing may bring another torch with it.
export PIP_CONSTRAINT := $(CONSTRAINTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where this is set, every process would compile all of torch's and MONAI's modules anew.
unexport PYTHONDONTWRITEBYTECODE
# The theme of the documentation announces its plans with every build; that is not a finding about ours.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := test
.PHONY: demo test check style docs slicer-env bench clean

demo: $(READY)
	$(BIN)/volsam demo

test: style docs slicer-env
	$(PYTEST)

check: style
	$(PYTEST) -m "not slow"

style: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet

# Slicer's libraries, apart from everything else. Without them the tests of the module are skipped and say so.
slicer-env: $(READY)
	@test -x $(SLICER)/bin/python || { $(BIN)/python -m venv --clear $(SLICER) && \
	  { $(BIN)/python -m uv pip install -q --python $(SLICER)/bin/python $(SLICER_PACKAGES) || \
	    $(SLICER)/bin/python -m pip install -q $(SLICER_PACKAGES); }; } || \
	  { rm -rf $(SLICER); echo 'the 3D Slicer module is not tested: its environment could not be made' >&2; }

bench: $(READY)
	$(BIN)/python benchmarks/start/run.py
	$(BIN)/python benchmarks/large_volume/run.py

clean:
	rm -rf $(VENV) $(SLICER) site demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# torch first and by pip, which knows where this machine keeps its build; then everything else by uv, which is faster,
# or by pip where there is no uv. Neither may replace torch.
$(READY): pyproject.toml client/pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo \
	  'error: $(PYTHON) is not Python 3.10 to 3.13; name one that is: make PYTHON=python3.12' >&2; exit 1; }
	@test '$(PYTHON)' = '$(BIN)/python' || $(PYTHON) -m venv --clear $(VENV) || { echo \
	  'error: $(PYTHON) cannot make an environment; Debian and Ubuntu keep that in the package python3-venv' >&2; \
	  rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install -q "$$(grep '^torch==' $(CONSTRAINTS))"
	$(BIN)/python -m pip install -q uv || echo 'uv cannot be had here; pip does it, more slowly'
	if $(BIN)/python -m uv --version >/dev/null 2>&1; \
	then $(BIN)/python -m uv pip install -q --python $(BIN)/python -c $(CONSTRAINTS) -e '.[$(EXTRAS)]' -e ./client; \
	else $(BIN)/python -m pip install -q -e '.[$(EXTRAS)]' -e ./client; fi
	@$(BIN)/python -c 'from importlib.metadata import version; found = "torch==" + version("torch").split("+")[0]; \
	  assert found in open("$(CONSTRAINTS)").read().split(), "torch was replaced: " + found'
	@touch $@
