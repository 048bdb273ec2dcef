# `make run` runs the demo on a fresh Debian 12 or 13; `make test` runs all tests. Both install their requirements, as root.
# `make dev` runs without root: environment, lint, types, and the tests that start no VM.
SHELL := /bin/bash
PY := .venv/bin/python
PYTEST := $(PY) -m pytest -q

.PHONY: help setup environment dev run test test-full test-hosts host unit docs golden lab lint crash soak fuzz agreement bench bench-quick bench-kvm pictures deb release

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Install the host packages and .venv, and start libvirtd; idempotent
	@scripts/setup

environment: ## Create .venv, without root and apt
	@scripts/environment

dev: ## Create .venv, and run lint, types, unit, docs and golden tests, without root
	@scripts/dev

run: setup ## Run the demo stack in a disposable VM, with its gates and teardown
	@.venv/bin/ktrdr-vm apply profiles/startability.yaml --instance-id demo

lint: environment ## Run ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check --quiet . && .venv/bin/mypy && .venv/bin/mypy --config-file tests/mypy.ini && echo "lint: clean"

unit: environment ## Run the unit tests: no root, no processes, no DNS
	@$(PYTEST) tests/unit

docs: environment ## Test the documentation against the program
	@$(PYTEST) tests/docs

golden: environment ## Compare all rendered documents of the shipped profiles
	@$(PYTEST) tests/golden

lab: setup ## Run the tests with VMs in separate network namespaces
	@$(PYTEST) tests/lab -m 'not full'

test: ## Run lint, unit, docs, golden and lab
	@scripts/test

test-full: ## Run `test` and the slow tests
	@scripts/test --full

test-hosts: setup ## Test on fresh Debian 12 and 13 with systemd, AppArmor and KVM; writes docs/hosts.md
	@KTRDR_VM_HOSTS_REPORT=docs/hosts.json $(PYTEST) tests/hosts && scripts/render-hosts

host: setup ## Open a shell on such a host; RELEASE=bookworm or trixie
	@$(PY) tests/hosts $(RELEASE)

crash: ## Kill every command at every step, run gc, and compare the host: the whole matrix
	@scripts/crash

soak: setup ## Run 100 sandboxes, three at a time, and kill some: no residue, no growth; writes docs/soak.md
	@KTRDR_VM_SOAK=$${KTRDR_VM_SOAK:-100} $(PYTEST) tests/lab/test_soak.py

fuzz: ## Fuzz every parser of untrusted bytes with atheris, for half an hour
	@scripts/fuzz

agreement: ## Compare the playbook runner with ansible-core, task by task
	@scripts/agreement

pictures: setup ## Draw docs/apply.svg and docs/top.svg from three real runs on this host
	@$(PY) scripts/pictures

deb: ## Build the Debian package in dist/ with Debian's own tools
	@scripts/deb

release: ## Build a release of the tagged commit in dist/: sdist, wheel, Debian package, checks and checksums
	@scripts/release

bench: setup ## Run all benchmarks, with comparable tools where they can be installed
	@$(PY) -m bench

bench-quick: setup ## Run the benchmarks without other tools, in under fifteen minutes
	@$(PY) -m bench --quick

bench-kvm: setup ## Run all benchmarks on a host with working KVM; writes bench/results-kvm.json
	@$(PY) -m bench --kvm
