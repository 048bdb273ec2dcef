"""The revision of an instance: what changes it, what carries it, and that no guest can write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress import revision as module
from ktrdr_vm.egress.grant import Grant
from ktrdr_vm.egress.grants.store import GrantBook
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.ledger_totals import add_to_totals
from ktrdr_vm.egress.revision import (
    Revision,
    RevisionKeeper,
    parse_revision,
    prepare_revision,
    read_revision,
    require_revision,
)
from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.report.ledger_row import fit_fields, parse_row

PLAN, OTHER = "a" * 64, "b" * 64


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Room:
    """The folder of a guard, and what a guard has of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        prepare_revision(directory, PLAN)
        self.begin()

    def begin(self, boot: str = "one") -> None:
        self.book = GrantBook(self.directory / "grants.json", self.clock, boot)
        self.ledger = Ledger(self.directory / "egress.jsonl", "one")
        self.keeper = RevisionKeeper(self.directory, self.book, self.ledger)

    def grant(self, name: str = "g", seconds: float = 60) -> None:
        self.book.add(Grant(name, EgressRule(host=f"{name}.example", ports=(443,)), self.clock.now + seconds))

    def end_all(self) -> None:
        self.clock.now += 1000
        self.book.take_ended()

    @property
    def text(self) -> str:
        assert read_revision(self.directory) == str(self.keeper.current)
        return str(self.keeper.current)

    @property
    def count(self) -> int:
        return parse_revision(self.text).grants

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "egress.jsonl").read_text().splitlines()]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_each_change_of_the_grants_is_another_revision(room: Room) -> None:
    seen = [room.text]
    steps: list[Callable[[], object]] = [
        lambda: room.grant(),
        lambda: room.grant(seconds=90),  # longer
        lambda: room.grant("other"),
        lambda: room.book.remove("other"),
        room.end_all,
    ]
    for step in steps:
        step()
        seen.append(room.text)
    assert len(set(seen)) == len(seen) == 6
    room.book.remove("unknown")
    room.book.take_ended()
    assert room.text == seen[-1]


def test_a_guard_that_is_started_again_goes_on(room: Room) -> None:
    room.grant()
    before = room.text
    room.begin()
    assert room.text == before


@pytest.mark.parametrize("said", [True, False], ids=["said before", "while no guard ran"])
def test_an_expiry_counts_once_however_it_is_noticed(room: Room, said: bool) -> None:
    room.grant("short", 10)
    room.grant("long", 100)
    room.clock.now += 50
    if said:
        room.book.take_ended()
    room.begin()
    assert room.count == 3 and [one.id for one in room.book.standing] == ["long"]
    room.begin()
    assert room.count == 3


def test_the_grants_of_another_boot_have_changed(room: Room) -> None:
    room.grant()
    before = room.count
    room.begin(boot="two")
    assert room.count > before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"revision": -1, "grants": []}', '{"revision": "1"}', '{"revision": true}', "\x00\xff"]
)
def test_a_damaged_file_never_leads_back_to_an_earlier_revision(room: Room, text: str) -> None:
    for number in range(3):
        room.grant(f"g{number}")
    (room.directory / "grants.json").write_text(text)
    room.begin()
    assert room.count > 3 and room.book.standing == ()
    parse_revision(room.text)


def test_a_grant_that_could_not_be_written_changes_nothing_and_a_revoked_one_does(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.grant("old")
    before = room.count

    def full(*_: object) -> None:
        raise HostError("no space", where="x", hint="x")

    monkeypatch.setattr("ktrdr_vm.egress.grants.store.write_durably", full)
    with pytest.raises(HostError):
        room.grant("new")
    assert room.count == before
    with pytest.raises(HostError):
        room.book.remove("old")
    assert room.count == before + 1


def test_another_plan_is_another_revision_and_the_same_plan_is_not(room: Room) -> None:
    before = room.text
    follow = room.keeper.operations["plan"]
    assert follow({"digest": PLAN}) == {"revision": before}
    after = follow({"digest": OTHER})["revision"]
    assert after == room.text != before and parse_revision(after).plan == OTHER[:16]
    room.begin()
    assert room.text == after
    for wrong in ("", "A" * 64, "b" * 63, OTHER + "\n", 5):
        with pytest.raises(ValueError):
            follow({"digest": wrong})


def test_a_folder_that_is_made_anew_is_another_incarnation(room: Room, tmp_path: Path) -> None:
    before = parse_revision(room.text)
    prepare_revision(room.directory, OTHER)
    room.begin()
    assert parse_revision(room.text).incarnation == before.incarnation
    (tmp_path / "anew").mkdir()
    again = Room(tmp_path / "anew")
    assert parse_revision(again.text).incarnation != before.incarnation


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_lines_carry_the_revision_of_when_they_were_written(room: Room) -> None:
    first = room.text
    room.ledger.write("dns", "deny", name="a.example", rule="name")
    room.grant()
    room.ledger.write("dns", "allow", name="g.example", rule="name")
    assert [line["revision"] for line in room.lines()] == [first, room.text]


def test_what_was_summed_before_a_change_carries_the_revision_before_it(room: Room) -> None:
    first = room.text
    for _ in range(150):
        room.ledger.write("dns", "deny", name="a.example", rule="name")
    room.grant()
    assert {line["revision"] for line in room.lines()} == {first}
    assert sum(line.get("count", 1) for line in room.lines()) == 150


def test_no_field_of_a_child_is_the_revision(room: Room) -> None:
    """A guest that makes the resolver or the proxy say one does not get it into the ledger."""
    forged = f"{'0' * 12}-{'0' * 16}-7"
    assert "revision" not in fit_fields({"revision": forged, "name": "a.example"})
    room.ledger.write("dns", "deny", name=f'a","revision":"{forged}', revision=forged, rule="name")
    [line] = room.lines()
    assert line["revision"] == room.text


@pytest.mark.parametrize(
    "value", ["x", "0" * 12, f"{'0' * 12}-{'0' * 16}-7\n", f"{'0' * 12}-{'0' * 16}--7", 7, None, [], "0" * 5000]
)
def test_a_line_whose_revision_is_none_loses_it(value: Any) -> None:
    row = {"time": "2026-01-01T00:00:00Z", "instance_id": "one", "kind": "dns", "verdict": "deny", "revision": value}
    found = parse_row(json.dumps(row))
    assert found is not None and "revision" not in found


def test_lines_of_earlier_versions_are_read() -> None:
    row = {"time": "2026-01-01T00:00:00Z", "instance_id": "one", "kind": "dns", "verdict": "deny"}
    assert parse_row(json.dumps(row)) == row


def test_totals_are_of_no_revision(room: Room) -> None:
    room.ledger.write("dns", "deny", name="a.example", rule="name")
    add_to_totals(room.directory / "totals", room.directory / "egress.jsonl")
    assert "revision" not in (room.directory / "totals").read_text()


def test_a_revision_that_cannot_be_written_is_none_in_the_file(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    room.grant()
    assert read_revision(room.directory) == "" and room.keeper.current.grants == 1
    room.ledger.write("dns", "allow", name="g.example")
    assert room.lines()[-1]["revision"] == str(room.keeper.current)


# -- what is expected --------------------------------------------------------------------------------------------------

NOW = str(Revision("0" * 12, "a" * 16, 3))


def test_the_same_revision_is_accepted() -> None:
    require_revision(NOW, NOW, "one")


@pytest.mark.parametrize(
    ("expected", "what"),
    [
        (Revision("1" * 12, "a" * 16, 3), "created or resumed anew"), (Revision("0" * 12, "b" * 16, 3), "its plan changed"),
        (Revision("0" * 12, "a" * 16, 2), "its grants changed"), (Revision("0" * 12, "a" * 16, 4), "its grants changed"),
    ],
)  # fmt: skip
def test_another_revision_is_refused_with_what_changed(expected: Revision, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        require_revision(str(expected), NOW, "one")
    assert NOW in caught.value.hint and caught.value.where == "one"


@pytest.mark.parametrize("expected", ["3", NOW[:-1], f"{NOW} ", NOW.upper(), f"{NOW}\n", "latest", "\x1b[2J"])
def test_what_is_no_revision_is_refused(expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_revision(expected, NOW, "one")
    assert caught.value.where == "--expect"


@pytest.mark.parametrize("content", ["", "x", NOW + "\n", NOW[:20]])
def test_a_damaged_revision_file_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "revision").write_text(content)
    assert read_revision(tmp_path) == "" and read_revision(tmp_path / "nothing") == ""
