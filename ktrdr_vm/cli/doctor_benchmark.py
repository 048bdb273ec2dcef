"""`doctor --benchmark`: five figures of this host, from a few forks of the shipped image."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.api import Instance
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.run.listener import Listener

_PROFILE = "version: 1\nname: benchmark\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\n"
_FORKS, _COMMANDS, _COPIED_MB = 3, 20, 64


@dataclass(frozen=True)
class Figure:
    """One measured value with its unit; the median where there are several samples."""

    name: str
    value: float
    unit: str


class _Notes(Listener):
    """Says what takes long, such as building the image for the first time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def note(self, text: str) -> None:
        self._say(text)


def measure(say: Callable[[str], None]) -> list[Figure]:
    """Fork an instance three times, and use it. The first fork is a warm-up, which also builds what is missing."""
    taken: list[tuple[float, float]] = []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="ktrdr-benchmark-") as folder:
        profile = Path(folder, "profile.yaml")
        profile.write_text(_PROFILE)
        for number in range(_FORKS + 1):
            say(f"fork {number} of {_FORKS}" if number else "warm-up")
            instance = Instance(profile, workspace=folder, instance_id=f"benchmark-{os.getpid()}", listener=_Notes(say))
            began = time.monotonic()
            with contextlib.ExitStack() as held:
                held.enter_context(instance)
                forked = time.monotonic() - began
                if number == _FORKS:
                    figures = _use(instance, Path(folder))
                began = time.monotonic()
            taken.append((forked, time.monotonic() - began))
    forks, ends = zip(*taken[1:], strict=True)
    return [
        Figure("fork → SSH and personalized", statistics.median(forks), "s"),
        *figures,
        Figure("destroyed, and proven", statistics.median(ends), "s"),
    ]


def _use(instance: Instance, folder: Path) -> list[Figure]:
    instance.exec(["true"])
    commands = []
    for _ in range(_COMMANDS):
        began = time.monotonic()
        instance.exec(["true"])
        commands.append(time.monotonic() - began)
    used = Libvirt().measure(instance.plan.identity.domain)
    large = folder / "large"
    large.write_bytes(os.urandom(1 << 20) * _COPIED_MB)
    began = time.monotonic()
    instance.upload(large, "/tmp/large")
    speed = _COPIED_MB / (time.monotonic() - began)
    return [
        Figure("a command in it", statistics.median(commands) * 1000, "ms"),
        Figure("its memory on this host", used[1] / 1e6 if used else 0.0, "MB"),
        Figure("a large file into it", speed, "MB/s"),
    ]
