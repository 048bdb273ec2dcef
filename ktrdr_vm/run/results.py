"""The results of a run, collected during it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ktrdr_vm.errors import KtrdrError, ResidueError
from ktrdr_vm.guest.commits import Returned
from ktrdr_vm.guest.workspace import Laid

if TYPE_CHECKING:
    from ktrdr_vm.report.model import GateResult, Verification, WorkloadResult


@dataclass
class Results:
    """The gate results, fetched files and residue until now. `started_at` is UTC, RFC 3339."""

    run_id: str
    started_at: str
    gates: tuple[GateResult, ...] = ()
    workload: WorkloadResult | None = None
    verification: Verification | None = None
    returned: Returned = field(default_factory=Returned)
    laid: Laid = field(default_factory=Laid)
    residue: tuple[str, ...] = ()
    limited: bool = False
    """True if a scheduler said that the time of the run is nearly over."""

    @property
    def passed(self) -> bool:
        workload_passed = self.workload is None or self.workload.outcome == "passed"
        return workload_passed and all(gate.outcome == "passed" for gate in self.gates)

    def exit_code(self, error: KtrdrError | None, *, interrupted: bool) -> int:
        """The exit code; if several apply, in the order 130, 5, 4, 1, 6."""
        if interrupted:
            return 130
        if self.residue:
            return ResidueError.exit_code
        if error is not None:
            return error.exit_code
        return 0 if self.passed else 1
