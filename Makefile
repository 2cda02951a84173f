# One target per job; continuous integration, hooks and the README call only these.
#
#   VENV         virtual environment to create or reuse     (.venv)
#   PYTHON       Python 3.11 or newer that creates it       (python3)
#   TORCH_INDEX  index to take torch from, for a build without CUDA or for another CUDA release
#   ARGS         further flags for `make serve`
#   TEST_PROCESSES  Python tests that run at once           (2)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin
UV := $(BIN)/uv
RUST := tools/with_rust.sh
CARGO_DENY := .cache/cargo-deny/bin/cargo-deny
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
GRPCURL := .cache/bin/grpcurl

export PYO3_PYTHON := $(abspath $(BIN)/python)
export UV_LINK_MODE ?= copy
# Conversions of GGUF checkpoints stay inside the checkout.
export TOKENWIRE_CACHE ?= $(CURDIR)/.cache/tokenwire

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
PROTOS := $(shell find proto -name '*.proto')

.DEFAULT_GOAL := help
.PHONY: help demo serve grpcurl test lint format test-rust test-python test-clients test-wheel clients-go clients-stubs \
	proto proto-breaking chaos soak bench audit constraints clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

demo: $(VENV)/.built $(MODEL) ## Install, fetch the default model, serve it, stream a chat answer to the terminal
	@$(BIN)/python tools/demo.py --model $(MODEL)

serve: $(VENV)/.built $(MODEL) ## Serve the default model in the foreground (further flags in ARGS)
	@exec $(BIN)/tokenwire serve --model $(MODEL) --quantize nf4 $(ARGS)

grpcurl: $(GRPCURL) ## Build grpcurl, which the tutorial uses, into .cache/bin (needs Go)

test: lint test-rust test-python test-clients test-wheel ## Run every check: lint, Rust, Python, clients, wheel

lint: $(VENV)/.dev $(VENV)/.built ## Check format, types, layers, proto and generated documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=service $(BIN)/python -m mypy.stubtest tokenwire._native
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python tools/generate_configuration_docs.py --check
	$(BIN)/python tools/generate_observability.py --check
	$(RUST) cargo fmt --check
	$(RUST) cargo clippy --release --locked --workspace --all-targets -- -D warnings

format: $(VENV)/.dev ## Format Python, Rust and proto
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format -w
	$(RUST) cargo fmt

test-rust: $(VENV)/.dev ## Run the Rust tests
	$(RUST) cargo test --release --locked --workspace

test-python: $(VENV)/.dev $(VENV)/.built $(MODEL) ## Run the Python tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --ignore tests/chaos
	# What faults do is watched alone: neighbours would only add load to promises of time.
	$(BIN)/python -m pytest tests/chaos

test-clients: $(VENV)/.dev $(VENV)/.built ## Test the clients of all languages whose toolchain is there, on live servers
	OMP_NUM_THREADS=1 $(BIN)/python tools/test_clients.py

clients-go: $(VENV)/.dev $(VENV)/.built ## Test the Go client alone (needs Go)
	OMP_NUM_THREADS=1 $(BIN)/python tools/test_clients.py go

clients-stubs: $(VENV)/.dev ## Generate the stubs of the clients that keep them in the repository (needs Go)
	cd clients/go && $(abspath $(BIN)/buf) generate ../.. --template buf.gen.yaml

test-wheel: $(VENV)/.dev ## Build the wheel with plain pip and import it in a clean environment
	$(RUST) $(BIN)/python tools/check_wheel.py

proto: $(VENV)/.dev ## Generate the protobuf stubs into service/tokenwire/v1
	$(BIN)/python tools/build_backend.py

proto-breaking: $(VENV)/.dev ## Refuse changes of the proto that break clients built from the last commit
	$(BIN)/buf breaking --against '.git#ref=HEAD'

chaos: $(VENV)/.dev $(VENV)/.built ## Run the long fault and load tests (minutes)
	RECORD_RELIABILITY=1 $(BIN)/python -m pytest tests/chaos tests/deploy -m 'not soak'
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest tests/unit/test_engine_model.py tests/unit/test_admission_model.py

soak: $(VENV)/.dev $(VENV)/.built ## Run a load of every kind with kills for SOAK_MINUTES (30); the report lies in bench/results
	RECORD_RELIABILITY=1 $(BIN)/python -m pytest tests/chaos/test_promise_soak.py -m soak -s

bench: $(VENV)/.dev $(VENV)/.built $(MODEL) ## Measure against the peers and rewrite bench/README.md's table
	$(BIN)/python -m bench

audit: $(CARGO_DENY) $(VENV)/.uv ## Look the dependencies up in the advisory databases (needs the network; the first run builds cargo-deny)
	$(RUST) $(CARGO_DENY) --locked --manifest-path Cargo.toml check bans licenses sources
	$(RUST) $(CARGO_DENY) --locked --manifest-path Cargo.toml check advisories
	$(UV) tool run --from 'pip-audit>=2.10.1,<3' pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

constraints: $(VENV)/.dev ## Renew constraints.txt from pyproject.toml
	$(BIN)/python tools/update_constraints.py

clean: ## Remove what the targets made, the virtual environment and the model included
	rm -rf $(VENV) .cache target build dist models bench/results service/tokenwire/v1 service/tokenwire/*.so
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# ---- set-up, each step once -----------------------------------------------------------------------------

$(VENV)/.uv:
	@tools/check_prerequisites.sh $(PYTHON)
	@echo "==> creating $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(VENV)/.serve: $(VENV)/.uv pyproject.toml constraints.txt
	@echo "==> installing dependencies (torch is large: some minutes on a slow line)"
	@if [ -n "$${TORCH_INDEX:-}" ]; then $(UV) pip install --python $(BIN)/python --index-url "$$TORCH_INDEX" torch; fi
	@$(UV) pip install --python $(BIN)/python --constraint constraints.txt -r pyproject.toml --extra serve --extra telemetry \
		maturin grpcio-tools
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	@$(UV) pip install --python $(BIN)/python --constraint constraints.txt -r pyproject.toml --extra serve --extra telemetry \
		--extra dev
	@touch $@

$(VENV)/.built: $(VENV)/.serve $(RUST_SOURCES) $(PROTOS) pyproject.toml tools/build_backend.py
	@echo "==> building the extension (two to four minutes the first time)"
	@TOKENWIRE_BUILD_OUTPUT=9 $(RUST) $(UV) pip install --python $(BIN)/python --no-build-isolation --no-deps --reinstall-package tokenwire --editable . 9>&2
	@touch $@

$(CARGO_DENY): | $(VENV)/.uv
	@echo "==> building cargo-deny (some minutes)"
	@$(RUST) cargo install --quiet --locked --root .cache/cargo-deny --version '^0.20' cargo-deny

$(MODEL): | $(VENV)/.uv
	@echo "==> fetching the default model (98 MB)"
	@$(BIN)/python tools/fetch_model.py $@

$(GRPCURL): tools/build_grpcurl.sh
	@echo "==> building grpcurl (a minute or two)"
	@tools/build_grpcurl.sh $@
