"""An interactive instance with the judged commit of a run, for debugging by hand: `apply --from-run`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.reader import find_workspace, read_report
from ktrdr_vm.host.git import require_commit, require_ref
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.repository import resolve_commit
from ktrdr_vm.host.runs import FinishedRun
from ktrdr_vm.inputs.resolve import Gathered, gather_profile
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import load_profile

# Only a person works in it, without time limits.
_LEFT_OUT = ("workload", "verify", "gates", "artifacts", "ttl")


def gather_run(run: Path, *, home: Home, instance_id: str | None = None) -> Gathered:
    """The inputs of `apply`: the profile of the run, interactive and without its workload, and the judged commit.

    `run` is the directory of the run. UsageError if its documents or commits no longer exist.
    """
    documents = FinishedRun(run)
    plan, report = _read(documents, "plan.json"), read_report(run)
    find_workspace(run)
    # JSON is YAML, so it passes all checks of a profile again.
    loaded = load_profile(json.dumps(make_document(plan["source"])), str(run / "plan.json"), _no_parent)
    name = instance_id or f"{plan['instance_id'][:50].rstrip('-')}--again"
    gathered = gather_profile(loaded, home=home, workspace=Path(plan["facts"]["workspace"]), instance_id=name)
    repository = gathered.repository
    if repository is None:
        return gathered
    commit = report.verification.commit if report.verification and report.verification.commit else report.base_commit
    ref = next((one.ref for one in report.commits if one.commit == commit and one.ref != commit), "")
    where = str(run / "report.json")
    found = resolve_commit(repository, require_ref(ref, where) if ref else require_commit(commit, where))
    if found != commit:
        raise UsageError(
            f"the commit {commit[:12]} of that run is not in the repository any more",
            where=str(repository.root),
            hint="a later run replaced its ref; name that run, or fetch the commit again",
        )
    facts = replace(gathered.plan.facts, base_commit=commit, base_ref=ref or gathered.plan.facts.base_ref)
    fresh = Plan(gathered.plan.profile, facts, gathered.plan.identity, gathered.plan.source)
    return replace(gathered, plan=fresh, repository=replace(repository, commit=commit, ref=ref))


def make_document(source: dict[str, Any]) -> dict[str, Any]:
    """The profile of the instance, from that of the run. No gate runs, so secrets that wait for one are left out."""
    document = {key: value for key, value in source.items() if key not in _LEFT_OUT} | {"mode": "interactive"}
    if document.get("workspace") is not None:
        document["workspace"] = {**document["workspace"], "uncommitted": "ignore", "include": []}
    if secrets := document.get("secrets"):
        document["secrets"] = [secret for secret in secrets if not (secret.get("broker") or {}).get("after")]
    return document


def _read(run: FinishedRun, name: str) -> dict[str, Any]:
    try:
        return run.document(name)
    except FileNotFoundError:
        raise UsageError(
            "this document of the run does not exist",
            where=str(run.path / name),
            hint="the run is still active, or was killed",
        ) from None


def _no_parent(reference: str, source: str) -> tuple[str, bytes]:
    raise UsageError(
        f"{reference} is not searched for", where=source, hint="the stored profile of a run must not extend another"
    )
