"""Verification that a workload cannot fake: what it committed, checked out clean in a VM that it never touched.

The workload was root in its VM and may have replaced Docker, PATH or the tests' output. Its commits are all that crosses over.
Profile and playbooks are those of the base, read before the workload began.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import Profile, Verify
from ktrdr_vm.report.model import GateOutcome, GateResult, Verification


def choose_mode(profile: Profile) -> Verify:
    """Without a workspace nothing can cross over, so the gates stay where the workload was."""
    return profile.verify if profile.workspace is not None else "same"


def sum_up(plan: Plan, mode: Verify, gates: Iterable[GateResult], message: str = "") -> Verification:
    """One verdict from the gates that ran after the workload. `plan` is that of the VM they ran in."""
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
    )


def _worst(gates: Iterable[GateResult]) -> GateOutcome:
    outcomes = {gate.outcome for gate in gates}
    order: tuple[GateOutcome, ...] = ("error", "failed", "skipped", "passed")
    return next((outcome for outcome in order if outcome in outcomes), "skipped")
