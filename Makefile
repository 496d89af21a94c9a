# `make demo` runs the main job, `make test` passes the tests; both set up all they need in .venv.
# On Debian as root a missing python3-venv is installed; elsewhere the message says what to install.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Two workers: tests hold real servers and real clocks, more would make timing lie. Where most is waiting there may be three.
WORKERS ?= 2
BY_FILE := --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo demo-kube test check bench proto prove images deb cluster cluster-down docs clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml requirements/constraints.txt tools/setup.sh
	@bash tools/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

setup: $(STAMP) ## Make .venv with everything

demo: $(STAMP) ## Run a site: agents, controller, simulator and judge as processes (6 minutes)
	@$(BIN)/python -m swingbus_sim.demo $(if $(DATA),--data "$(DATA)") $(ARGS)

# Whole sites in processes come last: they keep real time. Judged sites and the kill matrix bear each other's company, and that of
# files which wait for timers most of the time: one worker for each of the three. Benchmarks measure, so they run alone.
WAITING := tests/integration/test_kwok_site_agents.py tests/integration/test_two_controllers.py tests/integration/test_sim_site.py \
  tests/contract/test_kubernetes_leases.py
SITES := tests/integration/kill_matrix tests/e2e $(WAITING)
SITE_WORKERS ?= 3
BENCHMARKS := tests/benchmarks
# Clusters wait for timers of their own most of the time: three side by side, each worker with clusters of its own. What all of them
# need (programs, images) is built and installed before, by one alone; where that can't be done the tests say so.
CLUSTER_WORKERS ?= 3

demo-kube: $(STAMP) ## The same site with two GPU hosts as real Kubernetes nodes (root; 7 minutes)
	@$(BIN)/python -m tools.images toy-miner toy-inference swingbus-controller
	@$(BIN)/python -m swingbus_sim.demo_kube $(ARGS)

# Tests start our programs a thousand times: compiled once, not at every start.
test: $(STAMP) check ## Run checks and all tests
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q -j 0 agent controller protos sim tests tools
	@$(BIN)/python -m pytest -n $(WORKERS) $(BY_FILE) $(SITES:%=--ignore=%) --ignore=$(BENCHMARKS) --ignore=tests/cluster $(ARGS)
	-@$(BIN)/python -m swingbus_sim.cluster build
	-@$(BIN)/python -m tools.images
	@$(BIN)/python -m pytest -n $(CLUSTER_WORKERS) $(BY_FILE) tests/cluster $(ARGS)
	@$(BIN)/python -m pytest -n $(SITE_WORKERS) $(BY_FILE) $(SITES) $(ARGS)
	@$(BIN)/python -m pytest $(BENCHMARKS) $(ARGS)

check: $(STAMP) ## Format, lint, types, import contracts, protos
	@bash tools/check.sh "$(BIN)"

prove: $(STAMP) ## Prove the power protocol: 20,000 histories and every planted bug
	@$(BIN)/python -m tests.prove --histories 20000 $(ARGS)

bench: $(STAMP) ## Measure; writes build/bench.json
	@$(BIN)/python -m tests.benchmarks $(ARGS)

images: $(STAMP) ## Container images as OCI archives, into build/images (docs/kubernetes.md)
	@$(BIN)/python -m tools.images $(if $(BASE),--base "$(BASE)") $(ARGS)

deb: $(STAMP) ## Debian package with systemd units, into build/deb (docs/install-host.md)
	@$(BIN)/python -m tools.deb $(ARGS)

# CI's row by default; the whole matrix: docs/bench-kube.md. ARGS="--nodes 50 --arrivals 1 8 64 --limits 100 90 80 --contenders ours plain tuned share"
bench-kube: $(STAMP) ## Compare with PriorityClass on a real control plane; writes build/bench-kube/report.json
	@$(BIN)/python -m tests.benchmarks.kube $(ARGS)

cluster: $(STAMP) ## A real Kubernetes cluster on this machine (docs/cluster.md)
	@$(BIN)/python -m swingbus_sim.cluster up $(ARGS)

cluster-down: $(STAMP) ## End that cluster, also what a crash left of one
	@$(BIN)/python -m swingbus_sim.cluster down

proto: $(STAMP) ## Regenerate the messages of the contract
	@$(BIN)/buf format -w
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python protos/generate.py

clean: ## Remove what was built here
	@rm -rf build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
