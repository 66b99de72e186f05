# Two commands do everything: `make demo` and `make test`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# The CUDA build of TensorFlow where there is an NVIDIA GPU, else the CPU one. Override: make TF=cpu
TF ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: help setup setup-dev demo test test-slow seeded-faults fuzz soak lint types imports check serve ui lock bench performance measure-house clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv from the locked requirements (nothing happens when it is up to date)
	@tools/environment $(TF)

setup-dev: ## the same with the test tools
	@tools/environment $(TF) dev

demo: setup ## the whole pipeline on the default data, then a summary
	@dvc repro
	@headstart doctor
	@headstart summary

test: setup-dev ## the whole test suite, under ten minutes on two cores
	@pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup-dev ## what takes longer: kill tests in full, every encoder, fuzzing at full count
	@pytest -m slow --timeout 3600

fuzz: setup-dev ## 10,000 fuzzed requests to a live server (minutes)
	@pytest -m slow tests/serving/test_fuzz.py -s --timeout 3600

soak: setup-dev ## a live server under mixed load for 20 minutes: memory, errors, slow clients
	@python -m tests.serving.soak --minutes 20

seeded-faults: setup-dev ## seed one bug at a time in a scratch copy: the tests must catch each
	@python tools/seeded_faults.py

lint: setup-dev ## ruff: lint and format
	@ruff check .
	@ruff format --check .

types: setup-dev ## mypy, strict
	@mypy

imports: setup-dev ## import rules of the rooms, and dvc.yaml
	@pytest tests/test_architecture.py

check: lint types imports test ## everything that must pass before a commit lands

serve: setup ## serve models/serving on 127.0.0.1:5001, with limits on requests
	@headstart serve

ui: setup ## MLflow's pages on 127.0.0.1:5000
	@mlflow ui -w 1

lock: setup-dev ## renew the lock files from pyproject.toml
	@tools/lock

bench: setup-dev ## all measurements (long; on a quiet machine), then the documents of them
	@for bench in accuracy novelty gate decode ingest near_duplicates extract pipeline serve search fine_tune calibration tracking; do python -m bench.$$bench || exit 1; done
	@python -m bench.performance

measure-house: setup-dev ## size of the rooms, functions used once, files on three ways through the code
	@python -m tools.measure_house

performance: setup-dev ## docs/performance.md and measurements.md from bench/results
	@python -m bench.performance
