# `make demo` shows the main job, `make check` is what CI runs. Both set up what they need in $(VENV).
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .peers
BIN = $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test check check-data check-peers lint types docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/fusion_bench -m method=simple_average,task_arithmetic,ties_merging \
		modelpool=mini-t5_glue_lora16 taskpool=mini-t5_glue_text_generation taskpool.references=true

test: setup
	$(BIN)/python -m pytest -q -m "not data and not peers"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

# Needs the real data sets: a folder that holds glue/ in the Hub's layout.
check-data: setup
	FUSION_BENCH_DATA=$${FUSION_BENCH_DATA:-../shared/data} $(BIN)/python -m pytest -q -m data

# Compares with mergekit, PEFT and the original fusion-bench, which run in environments of their own under $(PEERS).
check-peers: setup $(PEERS)/mergekit/.installed $(PEERS)/fusion-bench/.installed
	FUSION_BENCH_PEER_MERGEKIT=$(abspath $(PEERS)/mergekit/bin/python) \
	FUSION_BENCH_PEER_FUSION_BENCH=$(abspath $(PEERS)/fusion-bench/bin/python) \
		$(BIN)/python -m pytest -q -m peers

$(PEERS)/%/.installed: tests/peers/%.txt constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --requirement $<
	touch $@

docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .peers build dist site src/*.egg-info
