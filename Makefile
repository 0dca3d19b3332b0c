PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
QUIET := --quiet -p no:cacheprovider
LAB := netns-lab/lab
SEEDS ?= 1000
INPUTS ?= 10000000
HISTORIES ?= 20000
# What is worth seeing on the kernel's own WireGuard too.
KERNEL_TESTS := tests/wg tests/net tests/mesh
# Those of whole meshes take longest, so a share of them goes with the others of the lab.
MESH_TESTS := $(wildcard tests/mesh/test_mesh_[a-q]*.py)

# Names of things to do, none of them a file; one after the other, as the lab is one machine.
.PHONY: help demo test check soak bench lab clean setup
.NOTPARALLEL:

help: ## list these
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: setup ## watch a mesh form, lose members and heal, on this machine
	$(LAB) demo

# Three run beside one another, for tests of networks wait more than they work.
test: check ## all tests but the long ones, also those on a stock kernel in a virtual machine
	@logs=$$(mktemp -d); trap 'rm -rf "$$logs"' EXIT; status=0; \
	nice -n 19 $(PYTEST) $(QUIET) -m "not (netns or vm or long)" >"$$logs/cores" 2>&1 & cores=$$!; \
	$(PYTEST) $(QUIET) -m "netns and not long" $(MESH_TESTS) >"$$logs/mesh" 2>&1 & mesh=$$!; \
	$(PYTEST) $(QUIET) -m "(netns or vm) and not long" $(MESH_TESTS:%=--ignore=%) || status=1; \
	wait $$mesh || status=1; cat "$$logs/mesh"; \
	wait $$cores || status=1; cat "$$logs/cores"; exit $$status
	$(LAB) vm --timeout 1200 -- env MESHD_CONTRACT_BACKENDS=fake,kernel,userspace \
		$(PYTEST) $(QUIET) -m "netns and not (slow or long)" $(KERNEL_TESTS)

check: setup ## formatting, lint and types
	$(PYTHON) -m ruff format --check . $(LAB)
	$(PYTHON) -m ruff check . $(LAB)
	$(PYTHON) -m mypy meshd netns-lab/lablib

soak: setup ## the long tests; SEEDS=1000 histories, HISTORIES=20000 of claims, INPUTS=10000000 of bytes
	$(PYTEST) $(QUIET) -m long
	$(PYTHON) tests/sim/soak.py --seeds $(SEEDS)
	$(PYTHON) tests/plan/claim_histories.py --histories $(HISTORIES)
	$(PYTHON) tests/fuzz/fuzz_gossip.py --inputs $(INPUTS)
	$(PYTHON) tests/fuzz/fuzz_gossip.py --inputs $(INPUTS) --target all

bench: ## run the measurements, an hour of them, and draw docs/*.png
	@contrib/setup --bench
	for file in bench/bench_*.py; do $(PYTHON) "$$file" || exit 1; done

lab: setup ## bring up five machines, one behind NAT, with meshd on them
	$(LAB) up nat

clean: ## take the lab down, and remove what tools have cached
	$(LAB) down
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

setup: ## install what is missing: packages, and .venv
	@contrib/setup
