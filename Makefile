# `make help` lists what can be done. Every target sets up first where that is needed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench lint fuzz clean

ENVIRONMENT := set +u; source scripts/environment.sh; set -u;

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## ROS 2 where none is sourced, Python packages into .venv, build into install/
	@scripts/setup.sh

demo: setup ## the simulated arm, with and without search: a table and a report
	@$(ENVIRONMENT) exec install/vla_reasoner_ros/lib/vla_reasoner_ros/demo $(ARGS)

test: setup ## every test
	@$(ENVIRONMENT) exec python -m pytest $(ARGS)

bench: setup ## the benchmarks, one JSON object a line
	@$(ENVIRONMENT) exec python benchmark/run.py $(ARGS)

lint: setup ## format, style and types
	@$(ENVIRONMENT) ruff check . && ruff format --check . && mypy

fuzz: setup ## property tests with many more examples, then 1e6 hostile chunks
	@$(ENVIRONMENT) HYPOTHESIS_PROFILE=fuzz python -m pytest -m hypothesis && \
	exec python benchmark/fuzz_control.py 1000000 $(ARGS)

clean: ## removes what set-up, build and runs made; recordings and models stay
	rm -rf .venv build install log out .pytest_cache .mypy_cache .ruff_cache .hypothesis
