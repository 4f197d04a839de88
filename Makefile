# Every target runs on a fresh Linux machine with Go, make and git; `make help`
# lists them. Tools are pinned as modules under testnet/tools and built into bin.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -X main.version=$(VERSION)
GO ?= go
# The end-to-end tests start agents, servers and mounts of their own; two
# packages at a time keep their timings honest on two cores.
TESTFLAGS ?= -timeout 15m -p 2

GOFILES := $(shell git ls-files '*.go' 2>/dev/null)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: bin/covey bin/covey-testnet ## bin/covey and bin/covey-testnet

.PHONY: bin/covey bin/covey-testnet
bin/covey bin/covey-testnet: bin/%:
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

# A real S3 server, for the demo and the tests.
bin/versitygw: testnet/tools/s3server/go.mod
	@mkdir -p bin
	$(GO) build -C testnet/tools/s3server -o $(CURDIR)/$@ github.com/versity/versitygw/cmd/versitygw

bin/golangci-lint: testnet/tools/lint/go.mod
	@mkdir -p bin
	$(GO) build -C testnet/tools/lint -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: demo
demo: build bin/versitygw ## four agents, one real S3 server, one real data set: read it all on all four
	bin/covey-testnet demo

.PHONY: testnet
testnet: build ## a thousand nodes in virtual time: table here, page with charts in covey-thousand.html
	bin/covey testnet run thousand

.PHONY: test
test: check-fuse vet lint race crashes sim ## everything that CI runs

.PHONY: check
check: test ## the same as test

.PHONY: check-fuse
check-fuse:
	@test -c /dev/fuse || { echo "make: /dev/fuse is missing; load the fuse module (modprobe fuse)" >&2; exit 1; }
	@command -v fusermount3 >/dev/null || { echo "make: fusermount3 is missing; install it (apt-get install fuse3)" >&2; exit 1; }

.PHONY: vet
vet: ## go vet
	$(GO) vet ./...

.PHONY: lint
lint: bin/golangci-lint ## golangci-lint, as pinned in testnet/tools/lint
	bin/golangci-lint run ./...

.PHONY: race
race: build bin/versitygw ## unit and end-to-end tests with the race detector
	$(GO) test -race $(TESTFLAGS) ./...

# With the race detector the simulations run with few seeds, which do not reach every
# hard state; without it they must.
.PHONY: sim
sim: ## the simulated meshes with all their seeds, and that they met every trouble
	$(GO) test -timeout 15m -count 1 ./testnet/sim

# The store against a model, over disks that fail and lose power. 5,000 crashes take
# under a minute on two idle cores; COVEY_CRASHES=100000 is the long form.
.PHONY: crashes
crashes: ## the store loses power 5,000 times (COVEY_CRASHES), with failing disks between
	COVEY_CRASHES=$${COVEY_CRASHES:-5000} $(GO) test -timeout 2h -run 'TestMetamorphic|TestCrashAtEachOperation' -v ./blockstore

.PHONY: unit
unit: ## the tests that need neither mounts nor servers, without the race detector
	$(GO) test -short $(TESTFLAGS) ./...

.PHONY: test-loaders
test-loaders: bin/covey check-fuse ## the Python package: its wheel in a clean virtual environment, with real torch (3 GB; LOADERSFLAGS=--no-torch without)
	COVEY_BIN=bin/covey loaders/python/tests/run $(LOADERSFLAGS)

FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s)
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done

.PHONY: bench
bench: build ## warm reads through the mount over the native file, as ratios
	bin/covey-testnet bench

.PHONY: bench-mount
bench-mount: build ## the mount's budget, row by row, over the native file in one run
	bin/covey-testnet bench --mount --rounds $(or $(ROUNDS),5)
	bin/covey-testnet bench --cold --rounds 3
	bin/covey-testnet bench --names $(or $(NAMES),1000000) --rounds 3
	$(GO) test -run '^$$' -bench 'Push|Table' -benchtime 3x ./mount

.PHONY: bench-blockstore
bench-blockstore: ## the store against the raw file system, benchstat-ready
	$(GO) test -run '^$$' -bench . -count $(or $(COUNT),5) ./blockstore

.PHONY: faults
faults: ## the fault matrix: which test covers which row
	@git grep -nE '// faults? [0-9]' -- '*_test.go' | sed -E 's,^([^:]+):[0-9]+:.*// faults? ([0-9][0-9, ]*).*,\2\t\1,' | sort -n -u

.PHONY: generate
generate: ## protobuf code (needs protoc)
	$(GO) generate ./...

.PHONY: clean
clean: ## remove bin
	rm -rf bin
