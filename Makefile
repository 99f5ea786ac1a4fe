# The developer's verbs. Each does all the set-up it needs on a machine with Python 3.11+, g++ and make.

TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
NATIVE := $(VENV)/.native-done
DISTRIBUTIONS := $(patsubst %/pyproject.toml,%,core/pyproject.toml $(sort $(wildcard plugins/*/pyproject.toml)))
# zoo-all has no code.
SOURCES := $(wildcard $(addsuffix /src,$(DISTRIBUTIONS)))
KERNELS := $(wildcard core/native/*.* core/native/*/*.* core/native/*/*/*.*)
SETTINGS := $(addsuffix /pyproject.toml,. $(DISTRIBUTIONS)) constraints.txt scripts/setup.sh Makefile $(wildcard core/hatch_build.py)

# A torch that was named on the command line or in the environment wins over one that is installed outside.
TORCH_CHOSEN := $(if $(filter file default undefined,$(origin TORCH)),,yes)

# With several goals (make check test) the order matters and setup must run once.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup run test check sanitize bench dist clean gemma

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PYTHON=python3.12 (interpreter), TORCH='$(TORCH)' (what pip installs), VENV=$(VENV)"

setup: $(STAMP) $(NATIVE) ## make the virtual environment and fetch the demo model
	@$(BIN)/zoo pull smollm2 >/dev/null

run: setup ## one answer of the demo model, streamed
	@$(BIN)/zoo run --raw "The capital of France is" --max-tokens 16 --temperature 0

test: setup gemma ## run the tests
	$(BIN)/pytest $(TESTS)

check: $(STAMP) ## lint, format, types, layers and the table of plugins
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/python scripts/plugin_table.py --check

# Not in the virtual environment: a compiler is all that it takes. SANITIZERS=thread runs one of them.
SANITIZERS ?= address thread
sanitize: ## run the C++ tests of the CPU kernels under AddressSanitizer and ThreadSanitizer
	@for kind in $(SANITIZERS); do \
		program=$$($(or $(PYTHON),python3) core/native/build.py --test --sanitize $$kind --isa here \
			--output core/build/sanitize/$$kind) || exit 1; \
		echo "$$kind sanitizer"; $$program $$(test $$kind = address || echo quick) || exit 1; \
	done

bench: setup ## measure the demo model on this machine
	@$(BIN)/zoo bench --model-path smollm2

dist: $(STAMP) ## build wheels and source archives of all distributions into dist/
	rm -rf dist
	@for folder in $(DISTRIBUTIONS); do \
		(cd $$folder && $(abspath $(BIN))/python -m hatchling build --directory $(CURDIR)/dist) || exit 1; \
	done
	@! ls dist/zoo_core-*-none-any.whl 2>/dev/null || { echo "zoo-core was built without its CPU kernels" >&2; exit 1; }

clean: ## remove the virtual environment and caches; pulled models stay
	rm -rf $(VENV) dist core/build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find core plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +

gemma: $(STAMP)
	@$(BIN)/zoo pull gemma3-270m >/dev/null

$(STAMP): $(SETTINGS)
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" TORCH_CHOSEN="$(TORCH_CHOSEN)" bash scripts/setup.sh "$(VENV)" $(DISTRIBUTIONS)
	@touch $@

# Setup has built the CPU kernels, or said why not; after a change of their sources they are built again.
$(NATIVE): $(STAMP) $(KERNELS)
	@$(BIN)/python core/native/build.py >/dev/null && touch $@ || true
