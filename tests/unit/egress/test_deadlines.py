"""A secret's time ends by the host's clock: whatever the guest does, whichever command is gone, and once more when
nobody answered."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress import expiry as deadlines
from ktrdr_vm.egress.expiry import ATTEMPTS, LATER_S, RETRY_S, Deadline, Deadlines


class Child:
    """A taking: it runs until it is told how it ended."""

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code


class Ledger:
    def __init__(self) -> None:
        self.said: list[str] = []

    def write(self, *_: str, message: str, **__: Any) -> None:
        self.said.append(message)


class Bench:
    """A clock of secrets whose time is told."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.ledger = path, 100.0, Ledger()
        self.taken: list[tuple[Deadline, Child]] = []
        self.clock = self.open()

    def open(self) -> Deadlines:
        return Deadlines(self.path, "ktrdr-one", self.ledger, clock=lambda: self.now, take=self._take)  # type: ignore[arg-type]

    def _take(self, domain: str, directory: Path, one: Deadline) -> Child:
        assert (domain, directory) == ("ktrdr-one", self.path.parent)
        child = Child()
        self.taken.append((one, child))
        return child

    def deliver(self, name: str = "token", seconds: float = 60) -> None:
        self.clock.operations["given"]({"name": name, "path": f"/run/secrets/{name}", "seconds": seconds})

    def at(self, moment: float) -> list[str]:
        """Which were begun to be taken, once the clock has looked at this moment."""
        self.now, before = moment, len(self.taken)
        self.clock.poll()
        return [one.name for one, _ in self.taken[before:]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(deadlines, "read_boot_id", lambda: "boot")
    return Bench(tmp_path / "deadlines.json")


def test_it_is_taken_when_its_time_is_over_and_not_before(bench: Bench) -> None:
    bench.deliver()
    assert bench.at(159.9) == [] and bench.at(160.0) == ["token"]
    assert bench.at(161.0) == [], "it is being taken already"
    bench.taken[0][1].code = 0
    assert bench.at(162.0) == [] and bench.ledger.said == [
        "the time of a secret is over: it was removed from the guest"
    ]
    assert json.loads(bench.path.read_text())["deadlines"] == []


def test_a_guard_that_was_started_again_goes_on_counting(bench: Bench) -> None:
    bench.deliver()
    bench.clock = bench.open()
    assert bench.at(160.0) == ["token"]


def test_after_the_hosts_end_there_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.deliver()
    monkeypatch.setattr(deadlines, "read_boot_id", lambda: "another")
    bench.clock = bench.open()
    assert bench.at(1e6) == []


def test_one_that_is_delivered_anew_has_its_whole_time(bench: Bench) -> None:
    bench.deliver()
    bench.now = 150.0
    bench.deliver()
    assert bench.at(160.0) == [] and bench.at(210.0) == ["token"]


def test_one_that_was_taken_back_is_not_taken_again(bench: Bench) -> None:
    bench.deliver()
    bench.clock.operations["gone"]({"name": "token", "path": "/run/secrets/token"})
    assert bench.at(1e6) == []


def test_a_guest_that_does_not_answer_is_asked_for_as_long_as_it_lives_and_said_once(bench: Bench) -> None:
    bench.deliver()
    moment, begun = 160.0, 0
    for _ in range(3 * ATTEMPTS):
        begun += len(bench.at(moment))
        if bench.taken:
            bench.taken[-1][1].code = 1
        moment += RETRY_S
    assert begun == ATTEMPTS
    assert bench.ledger.said == [
        "the time of a secret is over: the guest does not remove it and is asked again; its own timer is left"
    ]
    assert bench.at(moment + LATER_S) == ["token"]
    bench.taken[-1][1].code = 0
    bench.at(moment + LATER_S + 1)
    assert bench.ledger.said[1:] == ["the time of a secret is over: it was removed from the guest"]
    assert json.loads(bench.path.read_text())["deadlines"] == []


def test_what_is_lent_is_no_secret_of_the_same_name(bench: Bench) -> None:
    bench.deliver("e1", 60)
    bench.clock.operations["given"]({"name": "e1", "path": "", "seconds": 30, "message": "/data"})
    assert bench.at(130.0) == ["e1"] and bench.taken[0][0].path == ""
    bench.taken[0][1].code = 0
    assert bench.at(131.0) == [] and bench.ledger.said[0] == "lent for 30 s: /data"
    assert bench.ledger.said[1:] == ["the time of what was lent is over: it was taken back"]
    assert bench.at(160.0) == ["e1"] and bench.taken[1][0].path == "/run/secrets/e1"


def test_what_was_lent_and_is_not_given_back_ends_with_the_vm_and_is_said(bench: Bench) -> None:
    bench.clock.operations["given"]({"name": "e1", "path": "", "seconds": 30, "message": "2 vCPUs"})
    moment = 130.0
    for _ in range(3 * ATTEMPTS):
        if bench.at(moment):
            bench.taken[-1][1].code = 1
        moment += RETRY_S
    assert len(bench.taken) == ATTEMPTS and len(bench.ledger.said) == 2
    assert "does not let go of all of it; what it keeps ends with the machine" in bench.ledger.said[1]


def test_a_file_that_cannot_be_read_is_said(bench: Bench) -> None:
    bench.path.write_text("{")
    bench.clock = bench.open()
    assert "cannot be read" in bench.ledger.said[0]


def test_a_full_disk_does_not_end_the_guard_when_a_time_is_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file keeps what was removed, and a restarted guard removes it once more, which changes nothing."""
    bench.deliver()
    monkeypatch.setattr("ktrdr_vm.host.durable.os.fsync", refuse_to_sync)
    assert bench.at(160.0) == ["token"]
    bench.taken[0][1].code = 0
    assert bench.at(161.0) == [] and bench.ledger.said == [
        "the time of a secret is over: it was removed from the guest"
    ]
    monkeypatch.undo()
    monkeypatch.setattr(deadlines, "read_boot_id", lambda: "boot")
    bench.clock = bench.open()
    assert bench.at(162.0) == ["token"]


def refuse_to_sync(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
