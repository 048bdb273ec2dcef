"""A verdict is about one commit: the other refs that came back are named beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.guest.commits import Returned, ReturnedRef
from ktrdr_vm.report.model import Verification, WorkloadResult
from ktrdr_vm.run.warnings import find_first_lines

WORK, OTHER = "a" * 40, "b" * 40
GATHERED: Any = SimpleNamespace(plan=SimpleNamespace(observe=False), base=None, repository=None)
WORKLOAD = WorkloadResult(("agent",), "passed", 0, "2026-01-01T00:00:00Z", 5.0)
JUDGED = Verification("fresh", "one--verify", "refs/ktrdr/one/work", WORK, "passed", "passed")


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({}, ""),
        ({"same": WORK}, ""),
        ({"newer": OTHER, "same": WORK}, "refs/ktrdr/one/newer"),
        ({f"b{number}": OTHER for number in range(7)}, "refs/ktrdr/one/b4 and 2 more"),
    ],
)
def test_refs_that_were_not_judged_are_named(others: dict[str, str], named: str) -> None:
    refs = tuple(ReturnedRef(f"refs/ktrdr/one/{name}", commit, ()) for name, commit in {"work": WORK, **others}.items())
    lines = find_first_lines([], GATHERED, JUDGED, WORKLOAD, Returned(refs, "work"))
    assert len(lines) == bool(named)
    for line in lines:
        assert line.startswith(
            f"the verdict is about {WORK[:12]}; other refs came back and were not judged: refs/ktrdr/"
        )
        assert line.endswith(named) and "one/same" not in line
