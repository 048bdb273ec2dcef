"""A run that continues: the workload that still runs is followed, and one that has ended is started again."""

from __future__ import annotations

import pytest

from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.run.workload import run_workload
from tests.fakes.guest import Answer, FakeGuest, Ran


@pytest.mark.parametrize(
    ("state", "again", "begins"),
    [("running", True, False), ("0", True, True), ("gone", True, True), ("", True, True), ("running", False, True)],
)
def test_what_still_runs_is_followed_and_what_has_ended_begins_again(state: str, again: bool, begins: bool) -> None:
    said = [state] if again else []

    def answer(ran: Ran) -> Answer | None:
        if "tail -c" in ran.line:
            return GuestResult(0, b"answered\n", b"")
        return GuestResult(0, (said.pop(0) if said else "0").encode(), b"") if "kill -0" in ran.line else None

    guest = FakeGuest(answer)
    shown: list[bytes] = []
    result = run_workload(
        lambda: guest,
        Workload(("agent",), 60),
        environment={},
        chdir=None,
        mask=str,
        on_output=shown.append,
        again=again,
    )
    assert result is not None and (result.outcome, b"".join(shown)) == ("passed", b"answered\n")
    assert any("setsid sh -c" in ran.line for ran in guest.ran) == begins


def test_a_run_that_should_stop_leaves_a_workload_that_runs_on() -> None:
    guest = FakeGuest(lambda ran: GuestResult(0, b"running", b"") if "kill -0" in ran.line else None)
    turns = iter([False, False, True])
    result = run_workload(
        lambda: guest, Workload(("agent",), 60), environment={}, chdir=None, mask=str, on_output=lambda _: None,
        leave=lambda: next(turns),
    )  # fmt: skip
    assert result is None and not any("kill -TERM" in ran.line for ran in guest.ran)
