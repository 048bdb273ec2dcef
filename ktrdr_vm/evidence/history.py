"""Reading the reports of all runs that are kept."""

from __future__ import annotations

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.evidence.reader import read_report
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import list_runs
from ktrdr_vm.report.history import RunRow, make_row


def read_rows(
    home: Home, *, instance_id: str = "", branch: str = "", profile: str = ""
) -> tuple[list[RunRow], list[str]]:
    """The rows of the runs that match, and the directories of those without a report that can be read: active, killed
    or changed."""
    rows, unread = [], []
    for run in list_runs(home, instance_id):
        try:
            row = make_row(read_report(run.path))
        except (KtrdrError, OSError):
            unread.append(str(run.path))
            continue
        if branch in ("", row.branch) and profile in ("", row.profile):
            rows.append(row)
    return rows, unread
