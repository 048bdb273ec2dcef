"""Rows about gates: the same playbook by this program and by ansible-playbook, in the same guest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.machines import applied
from bench.place import LIMIT, PROGRAM, Place

_TASKS = """\
- name: small tasks
  hosts: all
  gather_facts: false
  tasks:
    - {name: a folder, ansible.builtin.file: {path: /tmp/small, state: directory}}
    - {name: a file, ansible.builtin.copy: {content: "one\\n", dest: /tmp/small/one}}
    - {name: its state, ansible.builtin.stat: {path: /tmp/small/one}, register: found}
    - {name: it is there, ansible.builtin.assert: {that: [found.stat.exists]}}
    - {name: a fact, ansible.builtin.set_fact: {word: one}}
"""
_COMMAND = "    - {{name: command {number}, ansible.builtin.command: {{cmd: echo {number}}}, changed_when: false}}\n"
TASKS = 23


def small_tasks(place: Place) -> dict[str, float]:
    """Seconds of a playbook of 23 tasks, first by this program, then by ansible-playbook with pipelining and a kept
    connection."""
    playbook = place.lab.scratch / "small.yaml"
    playbook.write_text(_TASKS + "".join(_COMMAND.format(number=number) for number in range(TASKS - 5)))
    control = place.lab.scratch / "gate-%C"
    with applied(place, "bench-gate"):
        ours = place.command("gate", "bench-gate", "./small.yaml")
        inventory = place.lab.scratch / "inventory.yaml"
        inventory.write_bytes(
            subprocess.run(
                [PROGRAM, "ssh-config", "--inventory", "bench-gate"],
                env=place.lab.environment,
                capture_output=True,
                check=True,
            ).stdout
        )
        began = time.monotonic()
        subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, playbook],
            env={
                **place.lab.environment,
                "PATH": os.environ["PATH"],
                "HOME": str(place.lab.scratch),
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=60 -o ControlPath={control}",
            },
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=LIMIT,
        )
        return {"gate.ours": ours, "gate.ansible": time.monotonic() - began}
