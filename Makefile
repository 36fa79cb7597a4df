# The front door, for a fresh Debian 12 as root. Each target installs what it needs and builds first.
#   make build   build/lazyblobd, build/lazyblob, build/lazyblob-keeper
#   make test    everything that can fail, in one CTest run
#   make e2e     only the part of it with Debian 13's containerd and dockerd; the table of docs/E2E.md
#   make e2e-forky  the same with Debian testing's containerd 2.x, which moves: not part of make test
#   make demo    a real image from a real registry, in every format
#   make bench   the figures of docs/PERFORMANCE.md
#   make sbom    build/lazyblob.spdx.json: what the programs are made of

SHELL := /bin/bash
JOBS ?= $(shell nproc)
PROGRAMS := lazyblobd lazyblob lazyblob-keeper

.PHONY: build test e2e e2e-forky demo bench sbom format clean
.DEFAULT_GOAL := build

build:
	deploy/install-deps.sh build
	cmake --preset default -DLAZYBLOB_ALL_TESTS=OFF
	cmake --build --preset default -j $(JOBS) --target $(PROGRAMS)

test:
	deploy/install-deps.sh test
	cmake --preset default -DLAZYBLOB_ALL_TESTS=ON
	cmake --build --preset default -j $(JOBS)
	ctest --preset default -j $(JOBS)

e2e: build
	deploy/install-deps.sh e2e
	tests/e2e/e2e_trixie.sh --update

e2e-forky: build
	deploy/install-deps.sh e2e
	cmake --build --preset default -j $(JOBS) --target cri_client
	tests/e2e/e2e_forky.sh --update

demo: build
	deploy/install-deps.sh demo
	tests/e2e/demo.sh

bench:
	deploy/install-deps.sh bench
	cmake --preset default -DLAZYBLOB_BENCH=ON
	cmake --build --preset default -j $(JOBS)
	bench/run.sh

sbom: build
	deploy/sbom.py --build build $(addprefix build/,$(PROGRAMS)) > build/lazyblob.spdx.json

# Formats all sources in place.
format:
	git ls-files -z --cached --others --exclude-standard '*.cc' '*.h' | xargs -0 clang-format-19 -i

clean:
	rm -rf build build-asan build-tsan build-tsan-deps
