"""The results in JUnit files that tests wrote in the guest: all cases of a file, and what the report keeps of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from ktrdr_vm.report.measurements import Observer

CaseOutcome = Literal["passed", "failed", "error", "skipped"]

# Failed cases of a JUnit file that the report names, and characters of their messages.
_MAX_NAMED, _MAX_MESSAGE = 100, 500


@dataclass(frozen=True)
class TestCase:
    """A case of a JUnit file that tests wrote in the guest, with texts cut."""

    classname: str
    name: str
    outcome: CaseOutcome
    duration_s: float
    message: str = ""
    text: str = ""

    __test__ = False


@dataclass(frozen=True)
class TestFile:
    """One such file with all of its cases. `path` is relative to the run directory; `problem` is the reason why it was
    not counted, or not completely."""

    path: str
    cases: tuple[TestCase, ...]
    problem: str = ""
    observed: Observer = "guest"

    __test__ = False

    @property
    def duration_s(self) -> float:
        return round(sum(case.duration_s for case in self.cases), 3)

    @property
    def failed(self) -> tuple[TestCase, ...]:
        return tuple(case for case in self.cases if case.outcome in ("failed", "error"))

    def sum_up(self) -> TestSummary:
        """Its counts, and the first failed cases with the beginnings of their messages."""
        count = Counter(case.outcome for case in self.cases)
        return TestSummary(
            path=self.path,
            tests=len(self.cases),
            failures=count["failed"],
            errors=count["error"],
            skipped=count["skipped"],
            duration_s=self.duration_s,
            failed=tuple(
                FailedCase(case.classname, case.name, case.message[:_MAX_MESSAGE]) for case in self.failed[:_MAX_NAMED]
            ),
            problem=self.problem,
            observed=self.observed,
        )


@dataclass(frozen=True)
class FailedCase:
    """A test case that failed or ended with an error."""

    classname: str
    name: str
    message: str


@dataclass(frozen=True)
class TestSummary:
    """The counts of one JUnit file, and its first failed cases. All cases are in `junit.xml`."""

    path: str
    tests: int
    failures: int
    errors: int
    skipped: int
    duration_s: float
    failed: tuple[FailedCase, ...] = ()
    problem: str = ""
    observed: Observer = "guest"

    __test__ = False

    @property
    def passed(self) -> int:
        return self.tests - self.failures - self.errors - self.skipped
