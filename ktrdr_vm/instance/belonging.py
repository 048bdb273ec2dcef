"""Checks that an instance or a run belongs to a workspace, for a caller that may use one workspace and nothing else of
this host.

The journal of an instance belongs to root and names its workspace. The plan of a run is accepted if the digest that
root kept confirms it. A file that the person can write is no evidence.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host.journal import read_journal
from ktrdr_vm.host.owner import find_owner
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import FinishedRun, find_run, parse_document
from ktrdr_vm.identity import parse_instance_id


def holds_instance(home: Home, instance_id: str, workspace: Path) -> bool:
    """True if the same person created this instance for this workspace. False if there is no such instance or its
    journal cannot be read."""
    with contextlib.suppress(KtrdrError):
        journal = read_journal(home.instance(parse_instance_id(instance_id).instance_id).journal)
        return journal is not None and _is_ours(journal.plan, workspace)
    return False


def require_instance(home: Home, instance_id: str, workspace: Path) -> None:
    """UsageError unless the instance belongs to the workspace. The error does not reveal whether it exists."""
    if not holds_instance(home, instance_id, workspace):
        raise UsageError(
            f"no instance {instance_id:.80} belongs to this workspace",
            where=str(workspace),
            hint="`list_instances` shows those that do",
        )


def require_run(home: Home, instance_id: str, run_id: str, workspace: Path) -> None:
    """UsageError unless the run belongs to the workspace."""
    name = parse_instance_id(instance_id).instance_id
    with contextlib.suppress(KtrdrError, OSError):
        path = find_run(home, name, run_id)
        run = FinishedRun(path)
        content = run.read("plan.json")
        unchanged = run.confirms("plan.json", content) or (run.owner == os.geteuid() and not run.digests())
        if unchanged and _is_ours(parse_document(content, str(path)), workspace):
            return
    raise UsageError(f"no run of {name} belongs to this workspace", where=str(workspace), hint="apply makes one")


def require_free(home: Home, instance_id: str, workspace: Path) -> None:
    """UsageError when the instance_id is in use for another workspace: `apply` would take over that instance."""
    name = parse_instance_id(instance_id).instance_id
    if os.path.lexists(home.instance(name).directory):
        require_instance(home, name, workspace)
    elif os.path.lexists(home.run(name, "latest")):
        require_run(home, name, "latest", workspace)


def _is_ours(plan: dict[str, object], workspace: Path) -> bool:
    facts = plan.get("facts")
    if not isinstance(facts, dict):
        return False
    return facts.get("workspace") == str(workspace) and facts.get("owner_uid") == find_owner()[0]
