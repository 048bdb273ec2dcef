"""Reading a run directory: its report, and the repository of the run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.received import ORIGIN, read_origin
from ktrdr_vm.host.repository import Repository, find_repository
from ktrdr_vm.host.runs import FinishedRun, parse_document
from ktrdr_vm.report.decode import DecodeError
from ktrdr_vm.report.json import decode_report, make_report_document
from ktrdr_vm.report.model import RunReport


def read_report(run: Path) -> RunReport:
    """The report of a run. UsageError if there is none, or if it is not valid."""
    try:
        content = FinishedRun(run).read("report.json")
    except FileNotFoundError:
        raise UsageError(
            "this run has no report",
            where=str(run),
            hint="it is still active, or was killed; `ktrdr-vm events` shows its progress",
        ) from None
    return parse_report(content, str(run / "report.json"))


def read_stored(run: Path) -> dict[str, Any]:
    """The content of `report.json` as it was stored, of any version; its exit code is a number. UsageError if there is
    none."""
    with contextlib.suppress(FileNotFoundError):
        document = FinishedRun(run).document("report.json")
        if isinstance(document.get("exit_code"), int):
            return document
    return make_report_document(read_report(run))


def parse_report(content: bytes, where: str) -> RunReport:
    """The report in the bytes of a `report.json`. UsageError for anything else."""
    try:
        return decode_report(parse_document(content, where))
    except DecodeError as error:
        raise UsageError(
            f"this is not a report of a supported version: {error}", where=where, hint="apply again with this version"
        ) from None


def find_workspace(path: Path, content: bytes | None = None) -> Repository | None:
    """The repository of a run; None if its profile has no workspace.

    `content` is that of its plan.json, if it was read already. The owner of the run may have changed its documents, so
    the repository that they name must belong to that owner.
    """
    run = FinishedRun(path)
    origin = read_origin(path)
    if origin is not None and run.confirms(ORIGIN, run.read(ORIGIN)):
        # It happened elsewhere, and this host wrote where it began from when it fetched the run.
        return find_repository(Path(origin.workspace)) if origin.workspace else None
    content = run.read("plan.json") if content is None else content
    plan = parse_document(content, str(path / "plan.json"))
    try:
        workspace = plan["profile"]["workspace"]
        repository = find_repository(Path(plan["facts"]["workspace"]), workspace["source"]) if workspace else None
    except (KeyError, TypeError, ValueError):
        raise UsageError("this is not the plan of a run", where=str(path / "plan.json"), hint="apply again") from None
    if repository is not None and repository.owner[0] != run.owner and not run.confirms("plan.json", content):
        raise UsageError(
            f"the repository {repository.root} belongs to another user and is not that of the run",
            where=str(path / "plan.json"),
            hint="the run directory was changed; apply again",
        )
    return repository
