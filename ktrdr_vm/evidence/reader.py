"""Reading a run directory: its report, and the repository of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import ResidueError, UsageError
from ktrdr_vm.host.received import ORIGIN, read_origin
from ktrdr_vm.host.repository import Repository, find_repository
from ktrdr_vm.host.runs import FinishedRun, parse_document
from ktrdr_vm.report.decode import DecodeError
from ktrdr_vm.report.json import decode_report
from ktrdr_vm.report.ledger_row import check_row
from ktrdr_vm.report.model import RunReport


def read_report(run: Path) -> RunReport:
    """The report of a run. UsageError if there is none, or if it is not valid."""
    try:
        content = FinishedRun(run).read("report.json")
    except FileNotFoundError:
        raise _lacks_report(run) from None
    return parse_own_report(content, run)


def parse_own_report(content: bytes, run: Path) -> RunReport:
    """The report in the bytes of the `report.json` of a run. UsageError if it is not valid, or says that it is of
    another run: the owner of the directory may have changed it, and others read it too, such as the metrics."""
    report = parse_report(content, str(run / "report.json"))
    _require_own(run, report.instance_id, report.run_id)
    _require_exit_code(run, report.exit_code, report.outcome)
    return report


def read_stored(run: Path) -> dict[str, Any]:
    """The content of `report.json` as it was stored, of any version; its exit code is one of its outcome. UsageError if
    there is none, or if it is of another run."""
    try:
        document = FinishedRun(run).document("report.json")
    except FileNotFoundError:
        raise _lacks_report(run) from None
    if type(document.get("exit_code")) is not int:
        raise _refuse("exit_code: not a whole number", str(run / "report.json"))
    _require_own(run, document.get("instance_id"), document.get("run_id"))
    _require_exit_code(run, document["exit_code"], document.get("outcome"))
    return document


def read_network(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of `egress.jsonl` of a run. What its owner changed into no line of the ledger is omitted."""
    return (row for one in FinishedRun(run).rows("egress.jsonl") if (row := check_row(one)) is not None)


def parse_report(content: bytes, where: str) -> RunReport:
    """The report in the bytes of a `report.json`. UsageError for anything else."""
    try:
        return decode_report(parse_document(content, where))
    except DecodeError as error:
        raise _refuse(str(error), where) from None


def _require_own(run: Path, instance_id: object, run_id: object) -> None:
    if (instance_id, run_id) != (run.parent.name, run.name):
        raise UsageError(
            "this report says that it is of another run",
            where=str(run / "report.json"),
            hint="it was changed after the run; apply again",
        )


def _require_exit_code(run: Path, exit_code: int, outcome: object) -> None:
    """A command ends with this code, of which a process keeps eight bits: 256 would be that of a run that passed."""
    # A run that passed and left something on the host ends with 5.
    known = exit_code in (0, ResidueError.exit_code) if outcome == "passed" else 0 < exit_code < 256
    if not known:
        raise UsageError(
            f"this report has the outcome {outcome!a:.40} and the exit code {exit_code!s:.20}, which no run has",
            where=str(run / "report.json"),
            hint="it was changed after the run; apply again",
        )


def _lacks_report(run: Path) -> UsageError:
    return UsageError(
        "this run has no report",
        where=str(run),
        hint="it is still active, or was killed; `ktrdr-vm events` shows its progress",
    )


def _refuse(why: str, where: str) -> UsageError:
    return UsageError(
        f"this is not a report of a supported version: {why}", where=where, hint="apply again with this version"
    )


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
