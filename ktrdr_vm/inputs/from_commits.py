"""The inputs of the fresh VM: profile and playbooks of the base commit, and the commits of a workload."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ktrdr_vm.guest.commits import Returned
from ktrdr_vm.guest.loose_files import LooseFiles
from ktrdr_vm.identity import derive_verification_id
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile

# The fresh VM has no workload and no secrets of it. Its uncommitted files are those that were stored for it, and not
# read again.
_LEFT_OUT = ("workload", "secrets")


def make_fresh(gathered: Gathered, returned: Returned, loose: LooseFiles | None = None) -> Gathered:
    """The inputs of the fresh VM, with `loose` beneath its commit. Without a returned commit, its commit is the
    base."""
    plan, repository = gathered.plan, gathered.repository
    assert repository is not None and plan.profile.workspace is not None
    chosen = returned.choose(plan.identity, plan.facts.base_ref)
    if chosen is not None:
        repository = replace(repository, commit=chosen.commit, ref=chosen.ref)
    source: dict[str, Any] = {key: value for key, value in plan.source.items() if key not in _LEFT_OUT}
    source |= {"mode": "sandbox", "workspace": {**source["workspace"], "uncommitted": "ignore", "include": []}}
    facts = replace(plan.facts, base_commit=repository.commit, base_ref=repository.ref or plan.facts.base_ref)
    fresh = Plan(build_profile(source), facts, derive_verification_id(plan.identity), source)
    return replace(gathered, plan=fresh, repository=repository, loose=loose)
