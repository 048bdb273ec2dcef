"""The files that were fetched from the guest, as rows of the report."""

from __future__ import annotations

from collections.abc import Iterable

from ktrdr_vm.guest.artifacts import BroughtBack
from ktrdr_vm.report.escape import escape_line
from ktrdr_vm.report.model import Artifact


def make_artifacts(rows: Iterable[BroughtBack], *, gate: str = "", beneath: str = "") -> tuple[Artifact, ...]:
    """Rows for the report. Control characters in names of the guest are escaped.

    `beneath` is the path of the folder of these rows in the run directory.
    """
    return tuple(
        Artifact(
            row.path and beneath + row.path,
            escape_line(row.source, limit=300),
            row.size,
            row.sha256,
            gate=gate,
            refused=row.refused,
        )
        for row in rows
    )
