# `make run` does the main job on a fresh Debian 12 or 13; `make test` proves it. Both install all they need, as root.
# `make dev` needs no root: environment, lint, types, and every test that starts no VM.
SHELL := /bin/bash
PY := .venv/bin/python
PYTEST := $(PY) -m pytest -q

.PHONY: help setup environment dev run test test-full test-hosts host unit docs golden lab lint crash soak fuzz agreement bench bench-quick

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## host packages, .venv, libvirtd; run twice, it changes nothing
	@scripts/setup

environment: ## .venv alone, without root and without apt
	@scripts/environment

dev: ## without root: environment, lint, types, unit, docs and golden tests
	@scripts/dev

run: setup ## the main job: the demo stack starts cleanly in a disposable VM, and nothing is left
	@.venv/bin/ktrdr-vm apply profiles/startability.yaml --instance-id demo

lint: environment ## ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check --quiet . && .venv/bin/mypy && .venv/bin/mypy --config-file tests/mypy.ini && echo "lint: clean"

unit: environment ## no root, no process, no DNS; seconds
	@$(PYTEST) tests/unit

docs: environment ## what the documentation says, against the program
	@$(PYTEST) tests/docs

golden: environment ## every rendered document of every shipped profile
	@$(PYTEST) tests/golden

lab: setup ## real VMs in network namespaces of their own
	@$(PYTEST) tests/lab -m 'not full'

test: ## lint, unit, docs, golden, lab
	@scripts/test

test-full: ## and what takes longer
	@scripts/test --full

test-hosts: setup ## Debian 12 and 13 as people have them, whole, in boxes with systemd, AppArmor and KVM; writes docs/hosts.md
	@KTRDR_VM_HOSTS_REPORT=docs/hosts.json $(PYTEST) tests/hosts && scripts/render-hosts

host: setup ## a shell in such a box; RELEASE=bookworm or trixie
	@$(PY) tests/hosts $(RELEASE)

crash: ## kill -9 at every step of every verb, then gc, then the host compared: the whole matrix
	@scripts/crash

soak: setup ## a hundred sandboxes, three at a time, some of them killed: no residue, no growth; writes docs/soak.md
	@KTRDR_VM_SOAK=$${KTRDR_VM_SOAK:-100} $(PYTEST) tests/lab/test_soak.py

fuzz: ## atheris over every parser of untrusted bytes, half an hour
	@scripts/fuzz

agreement: ## our runner and ansible-core's own over the same playbooks, task by task
	@scripts/agreement

bench: setup ## everything measured side by side, with peers where they can be installed
	@$(PY) -m bench

bench-quick: setup ## the same without peers, in under fifteen minutes
	@$(PY) -m bench --quick
