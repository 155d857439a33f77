# Everything a user or CI does, each from an empty checkout.
#
#   make run      build what it needs and run the automaton of each pattern over real text
#   make test     build what it needs and run the whole suite
#   make stress   the long runs
#   make docs     the documents as a site, to build/site
#   make bench    figures of the CPU, to out/; DEVICE=gpu for those of a GPU
#
# ENV=current uses the interpreter's own packages instead of a virtual environment: for machines
# without a network. TORCH=torch takes pip's newest build of torch (with CUDA on Linux); the default
# is a CPU build where one is on offer.

PYTHON ?= python3
ENV ?= venv
TORCH ?=
WORKERS ?= 2
DEVICE ?= cpu
VENV := .venv

ifeq ($(ENV),current)
PY := $(PYTHON)
READY :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/ready
endif

.PHONY: run test lint stress test-gpu bench docs clean

run: $(READY)
	@mkdir -p out
	$(PY) -m pdssm_compiler run --plot out/run.png

test: $(READY)
	$(PY) -m tests.suite --workers $(WORKERS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m tests.types

stress: $(READY)
	$(PY) -m pytest tests --hypothesis-profile=stress -n $(WORKERS) --timeout 3600

test-gpu: $(READY)
	$(PY) -m pytest tests/gpu

bench: $(READY)
	$(PY) -m benchmarks $(DEVICE)

docs: $(READY)
	$(PY) -m sphinx -W --keep-going -q -b html docs build/site

$(VENV)/ready: pyproject.toml scripts/install.py
	$(PYTHON) scripts/install.py --venv $(VENV) $(if $(TORCH),--torch $(TORCH))
	@touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
