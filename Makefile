# `make reproduce` redraws and re-proves everything; `make test` checks everything. Both make .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
# Lint beside the tests.
MAKEFLAGS += --jobs=2
# Two busy processes on two cores: threads of torch that spin while they wait would slow both several times.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: reproduce toy test check lint bench mutants docs gallery clean

# Toys and tests compile far more than they compute: no optimisation, and a thread for each of two processes.
reproduce toy check mutants: export XLA_FLAGS := --xla_cpu_use_fusion_emitters=false \
	--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 $(XLA_FLAGS)

reproduce: .venv/made
	$(BIN)/python -m experiments

toy: .venv/made
	$(BIN)/python -m experiments --toy

test: lint check

check: .venv/made
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# How cost grows, then against the peers, and a page of both; the exit code is 1 when a bar is missed.
bench: .venv/bench
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks

# curvlinops asks for a package that asks for torchvision, which would bring the CUDA build of torch; it runs without.
.venv/bench: .venv/made
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lm,dev,bench]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt curvlinops-for-pytorch backpack-for-pytorch \
		einops einconv linear-operator unfoldNd
	touch $@

# Slips of the pen in the theory, one at a time: how many do its tests find? docs/evidence/mutation.json keeps it.
mutants: .venv/made
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lm,dev,mutation]'
	$(BIN)/python -m tests.mutation

# A page for every theorem, from the objects; then the site, in site/. (With --quiet mkdocs lets warnings pass.)
docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/made
	$(BIN)/tradeoff document docs/theorems
	$(BIN)/mkdocs build --strict

# The gallery of the README and the docs: the last reproduction, committed.
gallery: reproduce
	mkdir -p figures/gallery
	cp reproduced/figures/*.png reproduced/figures/*.svg reproduced/data/*.nc figures/gallery/
	$(BIN)/python notebooks/run.py 5-a-real-checkpoint

# torch comes first and exactly: an open range would bring the CUDA build and its gigabytes.
.venv/made: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tradeoff needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lm,explore,dev,docs]'
	touch $@

clean:
	rm -rf .venv reproduced site docs/theorems
