# `make` alone lists the targets. Every target that compiles code first fetches
# libtorch (once). If LIBTORCH or LIBTORCH_USE_PYTORCH is set, that library is
# used instead. DEVICE=cuda builds with the CUDA version of libtorch.

DEVICE ?= cpu
# Where `make install` puts the programs.
PREFIX ?= /usr/local
# Flags that `make serve`, `bench`, `faults`, `attacks`, `soak` and `sizing` pass on.
ARGS ?=
# Architectures that `make gpu-kernels` compiles for.
GPU_TARGETS ?= sm_80 sm_90a sm_100

CARGO := cargo
ifeq ($(DEVICE),cuda)
ifndef LIBTORCH
# Only for cargo: if scripts/libtorch.py finds LIBTORCH set, it fetches nothing.
CARGO := LIBTORCH=$(CURDIR)/.libtorch/cuda cargo
endif
endif

.PHONY: help web demo test serve install package try-package libtorch bench check man node python python-stubs \
	api-docs contract-image gpu-kernels gpu-dry-run gpu-bundle faults attacks soak fuzz deploy-check try-container sizing recipes replicas
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: libtorch ## Train a small model for half a minute and generate text with it
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@$(CARGO) build --release --quiet -p charlstm-client --example liber_primus
	@python3 scripts/demo.py

test: libtorch ## Run the whole test suite
	@python3 -m unittest discover -s tests/python
	@$(MAKE) --no-print-directory python \
		|| echo "python: not available; the tests with Python clients and grpcurl will be skipped"
	@scripts/web.sh --check
	@$(MAKE) --no-print-directory node || echo "node: not available; the test with a Node client will be skipped"
	$(CARGO) test --workspace
	@if [ -x .venv/bin/python ]; then .venv/bin/python tests/faults; \
		elif [ -n "$$CHARLSTM_REQUIRE_ALL" ]; then echo "faults: .venv is missing" >&2; exit 1; \
		else echo "faults: skipped: the Python tools of the tests are not available"; fi
	@if [ -x .venv/bin/python ]; then .venv/bin/python tests/attacks; \
		elif [ -n "$$CHARLSTM_REQUIRE_ALL" ]; then echo "attacks: .venv is missing" >&2; exit 1; \
		else echo "attacks: skipped: the Python tools of the tests are not available"; fi
	@if [ -x .venv/bin/python ]; then .venv/bin/python tests/replicas; \
		elif [ -n "$$CHARLSTM_REQUIRE_ALL" ]; then echo "replicas: .venv is missing" >&2; exit 1; \
		else echo "replicas: skipped: the Python tools of the tests are not available"; fi
	@scripts/fuzz.sh --optional 20

faults: libtorch python ## Crashes, full disks and damaged files against the real program (minutes)
	$(CARGO) build --release -p charlstm-server
	@CHARLSTM_SERVER=target/release/charlstm-server .venv/bin/python tests/faults --full $(ARGS)

attacks: libtorch python ## What anyone on the network can do, against the real program (minutes)
	$(CARGO) build --release -p charlstm-server
	@CHARLSTM_SERVER=target/release/charlstm-server .venv/bin/python tests/attacks --full $(ARGS)

replicas: libtorch python ## Several servers on one PostgreSQL and one S3-compatible store (minutes)
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@CHARLSTM_SERVER=target/release/charlstm-server .venv/bin/python tests/replicas --full $(ARGS)

soak: libtorch python ## Twenty minutes of mixed load (ARGS="--soak 60": an hour)
	$(CARGO) build --release -p charlstm-server
	@CHARLSTM_SERVER=target/release/charlstm-server .venv/bin/python tests/attacks --soak 20 $(ARGS)

FUZZ_SECONDS ?= 180
fuzz: ## Fuzz everything read from untrusted sources, three minutes each (FUZZ_SECONDS=20)
	@scripts/fuzz.sh $(FUZZ_SECONDS)

serve: libtorch ## Run the server (ARGS="--listen HOST:PORT ...", DEVICE=cuda)
	$(CARGO) run --release -p charlstm-server -- $(ARGS)

install: man ## Install both programs, libtorch and the manual pages (PREFIX=/usr/local)
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@python3 scripts/package.py install --prefix $(PREFIX) --destdir "$(DESTDIR)"

package: man ## Build an archive that runs without the checkout: target/package/charlstm-*.tar.gz
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@python3 scripts/package.py archive

try-package: package ## Run the archive in a root folder without the checkout (root or user namespaces)
	@for archive in target/package/*.tar.gz; do python3 scripts/package.py try $$archive || exit 1; done

libtorch: ## Fetch the pinned libtorch, 0.5 GB (DEVICE=cuda: with CUDA, 4 GB)
	@python3 scripts/libtorch.py --device $(DEVICE)

bench: libtorch python ## Compare with PyTorch (installs it, 4 GB), then test limits (ARGS="--rounds 1")
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@$(CARGO) build --release --quiet -p charlstm-client --example liber_primus
	@python3 bench/run.py $(ARGS)
	@.venv/bin/python bench/limits.py $(LIMITS_ARGS)

recipes: libtorch python ## Train with fast and best on TEXT, three seeds each, and print the losses (hours)
	@test -n "$(TEXT)" || { echo "make recipes TEXT=FILE" >&2; exit 2; }
	@for recipe in fast best; do echo "recipe $$recipe:"; \
		.venv/bin/python bench/search.py score --text "$(TEXT)" --flags "--recipe $$recipe" || exit 1; done

check: libtorch ## Check format, lints, docs and the contract, with warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps
	@scripts/buf.sh lint
	@scripts/buf.sh breaking
	@python3 scripts/api_docs.py --check
	@scripts/deny.sh
	@scripts/python_check.sh

deploy-check: libtorch python ## Check the files in deploy/, the dashboard against a running server
	$(CARGO) build -p charlstm-server -p charlstm-client
	@.venv/bin/python scripts/deploy_check.py

try-container: libtorch ## Run the steps of deploy/Dockerfile in namespaces, without a container engine
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@python3 scripts/try_container.py

sizing: libtorch python ## Measure what models, sessions, streams and trainings need
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@.venv/bin/python bench/sizing.py $(ARGS)

gpu-kernels: ## Compile every GPU kernel with NVRTC (no GPU needed)
	@folder=$$(python3 scripts/nvrtc.py) && LD_LIBRARY_PATH=$$folder \
		cargo run --quiet -p charlstm-cuda --example compile_kernels -- $(GPU_TARGETS)

gpu-dry-run: libtorch ## Run GPU training steps up to the kernels, without a GPU (fetches 4 GB)
	@$(MAKE) --no-print-directory libtorch DEVICE=cuda
	@script=$$(python3 tests/cuda_stand_in/build.py) && \
		CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$$script \
		cargo test -p charlstm-torch --lib -- --ignored --nocapture

gpu-bundle: libtorch ## Build target/gpu-bundle.tar.gz: checks and timings for a machine with a GPU
	@# The scalar reference is slow without AVX2, which every machine with such a GPU has.
	RUSTFLAGS="-C target-cpu=x86-64-v3" cargo build --release -p charlstm-cuda --example gpu_check --target-dir target/v3
	$(CARGO) build --release -p charlstm-server -p charlstm-client
	@scripts/gpu_bundle.sh

api-docs: ## Generate docs/api.md from the comments in the .proto files
	@python3 scripts/api_docs.py

contract-image: ## Record the contract as released, for the backward compatibility check
	@scripts/buf.sh image

man: libtorch ## Write the manual pages of both programs to target/man
	$(CARGO) run --quiet -p charlstm-client -- man target/man
	$(CARGO) run --quiet -p charlstm-server --example man -- target/man

web: ## Build the web page from web/ into web/dist
	@scripts/web.sh

node: ## Install the Node packages that the tests need into target/node
	@scripts/node.sh

python: ## Install the Python packages that the tests need into .venv
	@scripts/venv.sh .venv tests/python/requirements.txt
	@scripts/venv.sh target/python-oldest python/oldest-requirements.txt

python-stubs: ## Generate the Python package's code from the .proto files
	@scripts/python_stubs.sh
