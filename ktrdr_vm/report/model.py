"""The results of a run as frozen data. `gates` and `run` create it; the renderers in this package read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ktrdr_vm.report.junit_results import TestSummary
from ktrdr_vm.report.measurements import Observer, Phase, Sample, Usage

TaskOutcome = Literal["ok", "changed", "failed", "skipped", "ignored", "rescued"]
GateOutcome = Literal["passed", "failed", "error", "skipped"]
RunOutcome = Literal["passed", "failed", "error", "escalated", "interrupted"]
EscalationState = Literal["pending", "approved", "denied", "revoked", "expired"]
StageName = Literal["base", "work", "verification"]
"""The stage of a gate: before the workload, after it in the same VM, or in a fresh VM with its commits."""


@dataclass(frozen=True)
class Attachment:
    """A titled text gathered because a task failed, such as the log of a container."""

    title: str
    text: str


@dataclass(frozen=True)
class TaskResult:
    """One task of a gate. Times are UTC RFC 3339, durations seconds; output is masked and limited."""

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
    evidence: tuple[Attachment, ...] = ()
    observed: Observer = "guest"


@dataclass(frozen=True)
class GateResult:
    """The result of one playbook. `message` is the reason if the outcome is not `passed`."""

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
        """The name, and the stage if it is not the base."""
        return self.name if self.stage == "base" else f"{self.name} ({self.stage})"


@dataclass(frozen=True)
class WorkloadResult:
    """The result of the workload. `exit_code` is None if it was stopped by its time limit, or if its guest ended before
    it."""

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
        """The end in words."""
        if self.exit_code is not None:
            return f"exit code {self.exit_code}"
        return (
            "stopped by its time limit"
            if self.outcome == "timeout"
            else "ended without an exit code: the guest was rebooted, or the workload was killed"
        )


@dataclass(frozen=True)
class Artifact:
    """A fetched file. `path` is relative to the run directory; refused ones have a `refused` reason and no digest."""

    path: str
    source: str
    size: int
    sha256: str
    gate: str = ""
    refused: str = ""
    observed: Observer = "guest"


@dataclass(frozen=True)
class Denial:
    """One denied destination, with the number of denials, and the gate and task at the first one."""

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
    """One allowed destination, with the number of connections and the bytes of ended ones in both directions."""

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
    """The verdict of the gates after the workload, and its strength.

    `fresh`: a VM to which the workload had no access, with `commit` checked out. `same`: the VM of the workload, where
    it was root, which is weaker. `instance_id` is that of the VM.
    """

    mode: Literal["fresh", "same"]
    instance_id: str
    ref: str
    commit: str
    outcome: GateOutcome
    startability: GateOutcome
    message: str = ""
    observed: Observer = "host"
    clean: bool = False
    """True if the VM had the files of `commit` and no uncommitted ones of the host. Only then it is attested."""


@dataclass(frozen=True)
class InstanceRevision:
    """What an instance could do at its end: its incarnation, the digest of its plan, and the number of changes of its
    grants."""

    instance_id: str
    incarnation: str
    plan_digest: str
    grants: int
    observed: Observer = "host"


@dataclass(frozen=True)
class Commits:
    """One fetched branch of the guest in the repository of the user. `changed` are paths that differ from the base
    commit."""

    ref: str
    commit: str
    changed: tuple[str, ...]
    observed: Observer = "host"


@dataclass(frozen=True)
class AnswerRow:
    """The answer to an escalation. `ends` is the id of a boot of the host and the second of it at which it expires."""

    by: str
    reason: str
    at: str
    request: dict[str, Any] = field(default_factory=dict)
    seconds: int = 0
    ends: tuple[str, float] | None = None
    source: dict[str, str] = field(default_factory=dict)
    waiting: bool = False


@dataclass(frozen=True)
class EscalationRow:
    """An escalation with its state when the run ended. The texts are those of the guest's packet."""

    id: str
    instance_id: str
    kind: str
    blocked: str
    why: str = ""
    options: tuple[str, ...] = ()
    recommendation: str = ""
    decision: str = ""
    evidence: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    seconds: int = 0
    received_at: str = ""
    state: EscalationState = "pending"
    answer: AnswerRow | None = None
    observed: Observer = "host"


@dataclass(frozen=True)
class RunReport:
    """The content of `report.json`, version 1 of the schema."""

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
    """Warnings that a reviewer must read first, such as a changed playbook."""
    base_ref: str = ""
    base_commit: str = ""
    phases: tuple[Phase, ...] = ()
    samples: tuple[Sample, ...] = ()
    gates: tuple[GateResult, ...] = ()
    workload: WorkloadResult | None = None
    verification: Verification | None = None
    allowed: tuple[Allowance, ...] = ()
    denied: tuple[Denial, ...] = ()
    escalations: tuple[EscalationRow, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    tests: tuple[TestSummary, ...] = ()
    commits: tuple[Commits, ...] = ()
    revisions: tuple[InstanceRevision, ...] = ()
    residue: tuple[str, ...] = ()
    kept: bool = False
    """True if the instance was kept on purpose; `residue` is empty then."""
    reason: Literal["", "limit"] = ""
    """Why the run was interrupted, if it was not a person: `limit` is the time limit of a scheduler."""
    resources: tuple[dict[str, str], ...] = ()
    image: dict[str, Any] = field(default_factory=dict)
    host: dict[str, str] = field(default_factory=dict)
    message: str = ""
    hint: str = ""
    schema_version: int = 1
