"""What the host measures during a run. It is apart from the model of the report, which no run needs before its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Observer = Literal["host", "guest"]


@dataclass(frozen=True)
class Phase:
    """A phase of the run, as observed by the host: plan, create, workspace, a gate, destroy."""

    name: str
    outcome: Literal["ok", "failed"]
    started_at: str
    duration_s: float
    observed: Observer = "host"


@dataclass(frozen=True)
class Sample:
    """A sample of a VM, as observed by the host: CPU seconds since its start, resident memory and disk in bytes."""

    time: str
    instance_id: str
    cpu_s: float
    memory: int
    disk: int


@dataclass(frozen=True)
class Usage:
    """The usage of a gate: CPU seconds; in bytes peak resident memory, growth of the disk, and traffic of connections
    that ended in it."""

    cpu_s: float
    memory_peak: int
    disk_growth: int
    bytes_in: int = 0
    bytes_out: int = 0
    observed: Observer = "host"
