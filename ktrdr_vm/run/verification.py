"""Verification that a workload cannot fake: its commits, checked out clean in a VM to which it had no access.

The workload was root in its VM and may have replaced Docker, PATH or the output of tests. Only its commits are used in
the fresh VM. Profile and playbooks are those of the base commit, read before the workload began.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktrdr_vm.guest.workspace import Laid
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import Profile, Verify
from ktrdr_vm.report.model import GateOutcome, GateResult, Verification


def choose_mode(profile: Profile) -> Verify:
    """True if the gates run in a fresh VM. Without a workspace there are no commits, so they run in that of the
    workload."""
    return profile.verify if profile.workspace is not None else "same"


def sum_up(
    plan: Plan, mode: Verify, gates: Iterable[GateResult], message: str = "", *, laid: Laid | None = None
) -> Verification:
    """The verdict of the gates that ran after the workload. `plan` is that of their VM, `laid` what it had besides the
    commit."""
    gates = tuple(gates)
    return Verification(
        mode=mode,
        instance_id=plan.identity.instance_id,
        ref=plan.facts.base_ref,
        commit=plan.facts.base_commit,
        outcome=_worst(gates),
        startability=_worst(gate for gate in gates if gate.name == "startability"),
        message=message,
        observed="host" if mode == "fresh" else "guest",
        clean=mode == "fresh" and laid is not None and not laid.files and not laid.deleted,
    )


def _worst(gates: Iterable[GateResult]) -> GateOutcome:
    outcomes = {gate.outcome for gate in gates}
    order: tuple[GateOutcome, ...] = ("error", "failed", "skipped", "passed")
    return next((outcome for outcome in order if outcome in outcomes), "skipped")
