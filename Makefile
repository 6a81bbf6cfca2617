# What there is to do. `make` alone lists it.

CARGO ?= cargo
# Names of tests, or parts of them: make test T=handshake
T ?=
# A bench: make bench B=relay
B ?=
# Arguments of demo, run and bench-peers: make demo ARGS="--listen 0.0.0.0:49100"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test run plugins check fmt lint bench bench-peers bench-smoke docs image

help: ## List what there is to do.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' $(MAKEFILE_LIST) | awk '{ what = $$2; $$1 = $$2 = ""; printf "  make %-13s%s\n", what, $$0 }'

demo: ## Build, then stream a moving picture into a browser on this machine.
	@deploy/setup build
	$(CARGO) run --locked -- demo $(ARGS)

test: ## Run all tests, or those whose names have T in them.
	@deploy/setup test
	@deploy/test $(T)

run: ## Run the gateway with the variables of the environment.
	@deploy/setup build
	$(CARGO) run --locked -- run $(ARGS)

plugins: ## Run the tests of the plugins alone.
	$(CARGO) run --locked --quiet -- plugin test plugins

check: ## Compile everything without running it.
	$(CARGO) check --locked --all-targets

fmt: ## Format the code.
	$(CARGO) fmt

lint: ## Format check, clippy and the documentation, with warnings as errors.
	@deploy/setup build
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

bench: ## Measure the parts, or the one that B names: make bench B=relay
	@deploy/setup build
	$(CARGO) bench --locked $(if $(B),--bench $(B))

bench-peers: ## Measure streamgate beside HAProxy, nginx and Envoy; half an hour.
	@deploy/setup build
	@benches/peers/setup
	$(CARGO) build --locked --release
	benches/peers/run.py $(ARGS) target/release/streamgate

bench-smoke: ## Try the rig of bench-peers; it measures nothing.
	@benches/peers/setup smoke
	$(CARGO) build --locked
	benches/peers/run.py --smoke target/debug/streamgate

docs: ## Write the generated reference pages.
	$(CARGO) run --locked --quiet -- reference .

image: ## Build the container image.
	docker build --tag streamgate .
