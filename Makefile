# The two that matter are `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
WORKLOAD ?=
STEPS ?= 100000
DEMO := runs/demo$(if $(WORKLOAD),-$(shell printf %s "$(WORKLOAD)" | cksum | cut -d ' ' -f 1))
TRACE := $(if $(WORKLOAD),--workload "$(WORKLOAD)")

# Two at a time; the tests of one file stay together, for they share what is slow to make.
PARALLEL := --numprocesses 2 --dist loadfile

.PHONY: claims forecaster forecasts worth help demo install install-dev test test-all lint format type docs fidelity artefacts clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: install  ## Train PPO briefly, compare it with heuristics on held-out traffic (WORKLOAD=FILE: on a trace)
	$(BIN)/llmcluster train --algo maskable-ppo --timesteps $(STEPS) --out $(DEMO)/ppo $(TRACE)
	$(BIN)/llmcluster evaluate --episodes 5 --out $(DEMO) $(TRACE) \
	  --agents round-robin,least-outstanding,uniform-cap,best-constant,follow-load,clairvoyant,$(DEMO)/ppo

install: .venv/installed  ## Set up .venv with what the package needs

install-dev: .venv/installed-dev  ## The same with what development needs

.venv/installed: pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmcluster needs Python 3.11 or later; make demo PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: install-dev  ## Run the default test suite
	$(BIN)/python -m pytest tests $(PARALLEL)

test-all: install-dev  ## Run every test, the slow ones too
	$(BIN)/python -m pytest tests -m "" $(PARALLEL)

lint: install-dev  ## Check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: install-dev  ## Mend style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

type: install-dev  ## Check types
	mkdir -p .pkg && ln -sfn .. .pkg/llmcluster
	MYPYPATH=.pkg $(BIN)/mypy -p llmcluster

docs: install-dev  ## Rebuild the generated tables of docs/ (scenarios, observation, command line)
	$(BIN)/python -m llmcluster.experiments.write_docs

fidelity: install-dev  ## Rebuild docs/fidelity.md: validate every measured source (needs LLMCLUSTER_DATA)
	$(BIN)/python -m llmcluster.experiments.write_fidelity

claims: install-dev  ## Rebuild docs/claims.md: try what published systems claim
	$(BIN)/python -m llmcluster.experiments.write_claims

forecaster: install-dev  ## Train the shipped forecaster anew and measure docs/forecasting.md, after any change of the physics (some minutes)
	$(BIN)/python -m llmcluster.experiments.write_artefacts

worth: install-dev  ## Measure anew what forecasts are worth to a controller, in docs/forecasting.md (some minutes)
	$(BIN)/python -m llmcluster.experiments.write_forecast_value

forecasts: install-dev  ## Measure all models on the published series anew (needs LLMCLUSTER_DATA; takes half an hour)
	$(BIN)/python -m llmcluster.experiments.write_forecast_scores

artefacts: install-dev  ## Rebuild all that is generated: weights, scores and pages (needs LLMCLUSTER_DATA; takes some hours)
	$(BIN)/python -m llmcluster.experiments.fit_workload $${LLMCLUSTER_DATA:-../shared/data}/azure_llm_2023/*_conv.csv \
	  $${LLMCLUSTER_DATA:-../shared/data}/azure_llm_2023/*_code.csv --out simulator/workload/azure_2023.toml
	$(MAKE) forecaster forecasts worth fidelity claims docs
	$(BIN)/python -m llmcluster.experiments.write_results

clean:  ## Remove the virtual environment and all caches, but no runs
	rm -rf .venv .pkg build *.egg-info .mypy_cache .ruff_cache .pytest_cache
