"""docs/troubleshooting.md shows what the program says: each failure is provoked again."""

from __future__ import annotations

import sys

import pytest

from ktrdr_vm.host.paths import PROJECT

sys.path.insert(0, str(PROJECT))

from tests.docs.failures import FAILURES, PAGE, Failure, provoke

PARTS = dict(part.split("\n\n", 1) for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:])


def test_the_page_has_each_failure_and_no_other() -> None:
    assert list(PARTS) == [failure.title for failure in FAILURES], "python tests/docs/failures.py --write"


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.title)
def test_the_page_shows_what_the_program_says(failure: Failure) -> None:
    assert PARTS[failure.title].rstrip("\n") == f"{failure.cause}\n\n```text\n{provoke(failure)}\n```", (
        "python tests/docs/failures.py --write"
    )


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.title)
def test_each_failure_says_what_to_do_next(failure: Failure) -> None:
    last = PARTS[failure.title].splitlines()[-2]
    assert last.startswith(("  next: ", " " * 19 + " → ")) and len(last) > 25
