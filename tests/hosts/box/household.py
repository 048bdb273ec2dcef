"""The program in a box, as root types it there, and a workspace with two small profiles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .machine import LIMIT, Box, Said
from .root import CLONE

WORK = "/root/work"
# What every variant runs: forked from the template of the main job, since the shape is the same.
QUICK = """\
version: 1
name: quick
image: debian-13-docker
resources: {vcpus: 2, memory: 2GiB, disk: 10GiB}
egress: {allow: [{preset: debian}]}
gates: [isolation]
"""
RESTING = QUICK.replace("name: quick", "name: resting\nmode: interactive").replace("gates: [isolation]\n", "")
LIVING = """\
version: 1
name: living
mode: interactive
image: debian-13-docker
resources: {vcpus: 1, memory: 1GiB, disk: 10GiB}
mounts: [{source: ./shared, target: /data}]
egress: {allow: [{preset: debian}]}
ttl: 6h
"""
POLICY = (
    "resources: {max: {vcpus: 3, memory: 2GiB, disk: 20GiB}}\nescalations: {kinds: [mount, resources], longest: 4h}\n"
)


@dataclass
class Household:
    """What is done with the program in one box."""

    box: Box

    def prepare(self) -> None:
        self.box.run(
            f"mkdir -p {WORK}/shared {WORK}/more && echo from the host > {WORK}/shared/input.txt && echo lent > {WORK}/more/x"
        ).require()
        for name, text in (("quick.yaml", QUICK), ("resting.yaml", RESTING), ("living.yaml", LIVING)):
            self.box.run(f"cat > {WORK}/{name}", stdin=text.encode()).require()

    def ktrdr(self, words: str, *, step: str = "", limit: float = LIMIT) -> Said:
        return self.box.run(f"cd {WORK} && {CLONE}/.venv/bin/ktrdr-vm {words}", limit=limit, step=step)

    def guest(self, instance_id: str, line: str) -> str:
        """What a command line says in the guest, as root."""
        return self.ktrdr(f"exec {instance_id} -- sudo sh -c '{line}'", limit=300).require().out.strip()

    def asks(self, instance_id: str, what: str) -> str:
        """The id of an escalation that the guest makes."""
        six = '--blocked it --why so --option wait --recommendation allow --decision "may I" --evidence log'
        before = self.escalations(instance_id)
        self.guest(instance_id, f"ktrdr-escalate {what} {six}")
        [new] = set(self.escalations(instance_id)) - set(before)
        return new

    def escalations(self, instance_id: str) -> dict[str, str]:
        """Id and state."""
        said = self.ktrdr("escalations list --json", limit=120).require().out
        found: list[dict[str, Any]] = json.loads(said)
        return {one["id"]: one["state"] for one in found if one["instance_id"] == instance_id}
