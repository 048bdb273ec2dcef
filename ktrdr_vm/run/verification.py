"""Verification that a workload cannot fake: what it committed, checked out clean in a VM that it never touched.

The workload was root in its VM and may have replaced Docker, PATH or the tests' output. Its commits are all that crosses over.
Profile and playbooks are those of the base, read before the workload began.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ktrdr_vm.guest.commits import Returned
from ktrdr_vm.identity import derive_verification_id
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.model import Profile, Verify
from ktrdr_vm.report.model import GateOutcome, GateResult, Verification

# What the fresh VM is not given: the workload itself, its secrets, and files that are not committed.
_LEFT_OUT = ("workload", "secrets")


def choose_mode(profile: Profile) -> Verify:
    """Without a workspace nothing can cross over, so the gates stay where the workload was."""
    return profile.verify if profile.workspace is not None else "same"


def make_fresh(gathered: Gathered, returned: Returned) -> Gathered:
    """What the fresh VM is made from. Without a returned commit that is the base itself."""
    plan, repository = gathered.plan, gathered.repository
    assert repository is not None and plan.profile.workspace is not None
    chosen = returned.choose(plan.identity, plan.facts.base_ref)
    if chosen is not None:
        repository = replace(repository, commit=chosen.commit, ref=chosen.ref)
    source: dict[str, Any] = {key: value for key, value in plan.source.items() if key not in _LEFT_OUT}
    source |= {"mode": "sandbox", "workspace": {**source["workspace"], "uncommitted": "ignore", "include": []}}
    facts = replace(plan.facts, base_commit=repository.commit, base_ref=repository.ref or plan.facts.base_ref)
    fresh = Plan(build_profile(source), facts, derive_verification_id(plan.identity), source)
    return replace(gathered, plan=fresh, repository=repository)


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
