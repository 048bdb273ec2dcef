"""What a run produced, as plain frozen data. Gates and `run` fill it; the renderers beside it only read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TaskOutcome = Literal["ok", "changed", "failed", "skipped", "ignored", "rescued"]
GateOutcome = Literal["passed", "failed", "error", "skipped"]
RunOutcome = Literal["passed", "failed", "error", "escalated", "interrupted"]
Observer = Literal["host", "guest"]
CaseOutcome = Literal["passed", "failed", "error", "skipped"]
StageName = Literal["base", "work", "verification"]
"""Where a gate ran: before the workload, after it in the same VM, or in a fresh VM with what it committed."""


@dataclass(frozen=True)
class TaskResult:
    """One task of a gate. Times are UTC RFC 3339, durations seconds; output is masked and capped before it gets here."""

    name: str
    module: str
    outcome: TaskOutcome
    changed: bool
    started_at: str
    duration_s: float
    message: str = ""
    stdout: str = ""
    stderr: str = ""
    attempts: int = 1
    where: str = ""
    evidence: tuple[tuple[str, str], ...] = ()
    """Titled texts gathered because the task failed, such as the logs of a container."""
    observed: Observer = "guest"


@dataclass(frozen=True)
class Sample:
    """A moment of a machine, as the host saw it: CPU seconds since it started, resident memory and disk in bytes."""

    time: str
    instance_id: str
    cpu_s: float
    memory: int
    disk: int


@dataclass(frozen=True)
class Usage:
    """What a gate used: CPU seconds; in bytes the most resident memory, growth of the disk, and traffic of flows that ended in it."""

    cpu_s: float
    memory_peak: int
    disk_growth: int
    bytes_in: int = 0
    bytes_out: int = 0
    observed: Observer = "host"


@dataclass(frozen=True)
class GateResult:
    """One playbook's run. `message` says why, when the outcome is not `passed`."""

    name: str
    outcome: GateOutcome
    started_at: str
    duration_s: float
    tasks: tuple[TaskResult, ...] = ()
    message: str = ""
    stage: StageName = "base"
    usage: Usage | None = None
    observed: Observer = "guest"

    @property
    def title(self) -> str:
        """The name, and where it ran when that is not the base."""
        return self.name if self.stage == "base" else f"{self.name} ({self.stage})"


@dataclass(frozen=True)
class WorkloadResult:
    """The workload's end. `exit_code` is None when it was stopped by its time limit, or its guest ended before it."""

    command: tuple[str, ...]
    outcome: Literal["passed", "failed", "timeout"]
    exit_code: int | None
    started_at: str
    duration_s: float
    stdout: str = ""
    stderr: str = ""
    observed: Observer = "guest"

    @property
    def ended(self) -> str:
        """How it ended, in words."""
        if self.exit_code is not None:
            return f"exit code {self.exit_code}"
        return (
            "stopped by its time limit"
            if self.outcome == "timeout"
            else "ended without an exit code: the guest was rebooted, or the workload was killed"
        )


@dataclass(frozen=True)
class Phase:
    """A stretch of the run as the host saw it: plan, create, workspace, a gate, destroy."""

    name: str
    outcome: Literal["ok", "failed"]
    started_at: str
    duration_s: float
    observed: Observer = "host"


@dataclass(frozen=True)
class Artifact:
    """A file brought back. `path` is relative to the run directory; refused ones have a `refused` reason and no digest."""

    path: str
    source: str
    size: int
    sha256: str
    gate: str = ""
    refused: str = ""
    observed: Observer = "guest"


@dataclass(frozen=True)
class TestCase:
    """A case of a JUnit file that tests wrote in the guest, cut to a length that can be shown."""

    classname: str
    name: str
    outcome: CaseOutcome
    duration_s: float
    message: str = ""
    text: str = ""

    __test__ = False


@dataclass(frozen=True)
class TestFile:
    """One such file. `path` is relative to the run directory; `problem` says why it was not counted, or not to its end."""

    path: str
    cases: tuple[TestCase, ...]
    problem: str = ""
    observed: Observer = "guest"

    __test__ = False

    def count(self, *outcomes: CaseOutcome) -> int:
        return sum(case.outcome in outcomes for case in self.cases)

    @property
    def duration_s(self) -> float:
        return round(sum(case.duration_s for case in self.cases), 3)

    @property
    def failed(self) -> tuple[TestCase, ...]:
        return tuple(case for case in self.cases if case.outcome in ("failed", "error"))


@dataclass(frozen=True)
class Denial:
    """One destination that was refused, with how often, and the gate and task that ran when it was first seen."""

    host: str
    address: str
    port: int
    rule: str
    count: int
    first_at: str
    last_at: str
    during: str = ""
    observed: Observer = "host"


@dataclass(frozen=True)
class Allowance:
    """One destination that was reached, with how often and the bytes both ways for flows that ended."""

    host: str
    address: str
    port: int
    rule: str
    count: int
    bytes_in: int = 0
    bytes_out: int = 0
    observed: Observer = "host"


@dataclass(frozen=True)
class Verification:
    """What the gates after the workload judged, and how much their word is worth.

    `fresh`: a VM that the workload never touched, with a clean checkout of `commit`. `same`: the VM that the workload used, where it
    was root; that is weaker. `instance_id` is the VM's.
    """

    mode: Literal["fresh", "same"]
    instance_id: str
    ref: str
    commit: str
    outcome: GateOutcome
    startability: GateOutcome
    message: str = ""
    observed: Observer = "host"


@dataclass(frozen=True)
class Commits:
    """One branch of the guest's, as it now stands in the person's repository. `changed` are paths that differ from the base."""

    ref: str
    commit: str
    changed: tuple[str, ...]
    observed: Observer = "host"


@dataclass(frozen=True)
class RunReport:
    """Everything `report.json` says. Version 1 of the schema in the contract."""

    instance_id: str
    run_id: str
    profile: str
    mode: str
    plan_digest: str
    image_digest: str
    outcome: RunOutcome
    exit_code: int
    started_at: str
    duration_s: float
    first_lines: tuple[str, ...] = ()
    """What a reviewer must see before anything else, such as a changed playbook."""
    base_ref: str = ""
    base_commit: str = ""
    phases: tuple[Phase, ...] = ()
    samples: tuple[Sample, ...] = ()
    gates: tuple[GateResult, ...] = ()
    workload: WorkloadResult | None = None
    verification: Verification | None = None
    allowed: tuple[Allowance, ...] = ()
    denied: tuple[Denial, ...] = ()
    escalations: tuple[dict[str, Any], ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    tests: tuple[TestFile, ...] = ()
    commits: tuple[Commits, ...] = ()
    residue: tuple[str, ...] = ()
    kept: bool = False
    """The instance is still there, on purpose; `residue` then says nothing."""
    resources: tuple[dict[str, str], ...] = ()
    image: dict[str, Any] = field(default_factory=dict)
    host: dict[str, str] = field(default_factory=dict)
    message: str = ""
    hint: str = ""
    schema_version: int = 1
