"""`ktrdr-vm` as a person runs it: a process of its own, its exit code, its report, and what the host still has of it
afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.instance import Instance
from laboratory.lab import Lab

PROGRAM = [sys.executable, "-m", "ktrdr_vm.cli.main"]
# An apply with a template to build, in emulation, beside other work.
LIMIT = 1200.0


@dataclass
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found


@dataclass
class Started:
    """A command that runs. `stop` presses Ctrl-C."""

    lab: Lab
    instance_id: str
    process: subprocess.Popen[str] = field(repr=False)

    def events(self) -> list[dict[str, Any]]:
        """What the run has said so far."""
        path = self.lab.home.runs / self.instance_id / "latest" / "events.jsonl"
        try:
            complete, _, _ = path.read_text().rpartition("\n")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in complete.splitlines()]

    def phases(self) -> list[str]:
        return [event["phase"] for event in self.events() if event["event"] == "phase_started"]

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self, limit: float = LIMIT) -> Ended:
        try:
            out, err = self.process.communicate(timeout=limit)
        finally:
            if self.process.poll() is None:
                self.process.kill()
        return Ended(self.process.returncode, out, err)


def start(
    lab: Lab,
    instance_id: str,
    *words: str | Path,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    program: list[str] = PROGRAM,
) -> Started:
    process = subprocess.Popen(
        [*program, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**lab.environment, **(environment or {})},
        cwd=cwd or lab.scratch,
    )
    return Started(lab, instance_id, process)


def run(lab: Lab, *words: str | Path, limit: float = 300, **more: Any) -> Ended:
    return start(lab, "", *words, **more).wait(limit)


def assert_nothing_left(lab: Lab, instance_id: str) -> None:
    """Asked of the host with the tools that a person would use, and of the program."""
    identity = parse_instance_id(instance_id)
    assert Instance(lab.home, identity, Libvirt()).find_residue() == []
    for argv in (
        ["virsh", "list", "--all", "--name"],
        ["ip", "link"],
        ["ip", "netns", "list"],
        ["ip", "addr"],
        ["nft", "list", "ruleset"],
    ):
        said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
        for name in (identity.instance_id, identity.tap, identity.table):
            assert name not in said, f"{' '.join(argv)} still shows {name}"
    assert not (lab.home.instances / instance_id).exists()
    assert [path.name for path in lab.home.locks.glob(f"{instance_id}*")] == []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            assert f"/{instance_id}/".encode() not in words and f"ktrdr-{instance_id},".encode() not in words, words
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        assert f"/instances/{instance_id}" not in line
