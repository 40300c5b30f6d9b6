# Everything a fresh machine needs is set up by the target that needs it. Python 3.11 or later and a shell suffice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := router replica loadtest
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What downloads is tried three times: a registry may be away for a moment.
tried = $(1) || { sleep 5; $(1); } || { sleep 20; $(1); }

.PHONY: help demo test fuzz-events fuzz-requests test-engines test-helm lint format bench bench-peers soak clean
help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

$(VENV)/core: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefix-router needs Python 3.11 or later (set PYTHON=...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call tried,$(BIN)/python -m pip install --quiet --editable .)
	touch $@

$(VENV)/dev: $(VENV)/core
	$(call tried,$(BIN)/python -m pip install --quiet --editable '.[dev]')
	touch $@

demo: $(VENV)/core ## simulated fleet, router and agents: hit rates of round robin and prefix-aware routing
	$(BIN)/prefix-router demo

test: $(VENV)/dev ## all tests
	$(BIN)/python tests/prepare.py
	$(BIN)/python -m pytest

fuzz-events: $(VENV)/dev ## a million mutated event payloads: no crash, no wrong block (10 to 20 minutes)
	PREFIX_ROUTER_FUZZ=1000000 $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/index/test_wire_fuzz.py

test-helm: $(VENV)/dev ## the Helm chart alone (part of make test)
	-$(BIN)/python tests/helm/fetch_tools.py
	$(BIN)/python -m pytest tests/helm

test-engines: $(VENV)/dev ## against real vLLM on the CPU (installs it once: 614 MB)
	$(call tried,$(BIN)/python tests/engines_real/prepare.py)
	$(BIN)/python -m pytest -m engines tests/engines_real

lint: $(VENV)/dev ## ruff, mypy --strict, import rules, generated docs up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m router.config.reference | diff -u docs/configuration.md -
	$(BIN)/python -m router.observe.reference | diff -u docs/metrics.md -
	$(BIN)/python -m router.config.schema --check helm/prefix-router/values.schema.json

format: $(VENV)/dev ## format the code and regenerate the docs
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m router.config.reference > docs/configuration.md
	$(BIN)/python -m router.observe.reference > docs/metrics.md
	$(BIN)/python -m router.config.schema helm/prefix-router/values.schema.json

bench: $(VENV)/dev ## micro-benchmarks: index, prompt stage, proxy
	for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

bench-peers: $(VENV)/dev ## what a request costs here and in nginx, sglang-router, smg, vllm-router (minutes; installs them once)
	$(BIN)/python tests/bench/peers.py --markdown docs/benchmarks/router-cost.md

fuzz-requests: $(VENV)/dev ## a million fuzzed requests against a router process, with figures
	$(BIN)/python tests/fuzz/run.py --requests $(or $(REQUESTS),1000000)

soak: $(VENV)/dev ## 200,000 requests with faults under load: failures, counters, memory over time
	$(BIN)/python tests/faults/soak.py --requests $(or $(REQUESTS),200000)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
