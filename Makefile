# `make help` lists what can be done. Every target sets up first where that is needed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo models test test-kilted bench soak lint fuzz docs clean

ENVIRONMENT := set +u; source scripts/environment.sh; set -u;

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## ROS 2 where none is sourced, Python packages into .venv, build into install/
	@scripts/setup.sh

demo: setup ## the simulated arm, with and without search: a table and a report
	@$(ENVIRONMENT) exec install/vla_reasoner_ros/lib/vla_reasoner_ros/demo $(ARGS)

test: setup ## every test
	@$(ENVIRONMENT) exec python -m pytest -n 2 --dist loadfile --reruns 2 $(ARGS)

models: setup ## data, models, report card and results from nothing, into data/recipe; goes on where it was
	@$(ENVIRONMENT) exec vla-reasoner recipe $(ARGS)

bench: setup ## the benchmarks, one JSON object a line
	@$(ENVIRONMENT) exec python benchmark/run.py $(ARGS)

lint: setup ## format, style and types
	@$(ENVIRONMENT) ruff check . && ruff format --check . && mypy

soak: setup ## half an hour of cameras, a hundred lifecycle cycles, hostile messages: leaks, losses
	@$(ENVIRONMENT) exec python -m benchmark.soak $(ARGS)

fuzz: setup ## property tests with many more examples, 1e6 hostile chunks, 1e5 messages a topic
	@$(ENVIRONMENT) HYPOTHESIS_PROFILE=fuzz python -m pytest -m hypothesis && \
	python -m benchmark.fuzz_control 1000000 --progress out/fuzz.jsonl $(ARGS) && \
	exec python -m benchmark.fuzz_messages 100000

docs: ## the documentation as a site, in out/site
	@exec scripts/docs.sh $(ARGS)

test-kilted: ## the tests under ROS 2 Kilted from PyPI, in an environment of its own
	@exec scripts/kilted.sh $(ARGS)

clean: ## removes what set-up, build and runs made; recordings and models stay
	rm -rf .venv build install log out resource/report/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
