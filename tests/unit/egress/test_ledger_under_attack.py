"""A guest that decides how many denials there are, and a child that says what it likes: the rest of the ledger stays,
and its totals."""

from __future__ import annotations

import errno
import itertools
import json
import random
import socket
import string
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress import ledger as ledger_module
from ktrdr_vm.egress.ledger import LINES_PER_SECOND, MOST_SUMS, Ledger, older, read_kept, totals_of
from ktrdr_vm.egress.ledger_totals import MOST_TOTALS, add_to_totals
from ktrdr_vm.egress.resolver.supervisor import ResolverSupervisor
from ktrdr_vm.report.egress_summary import sum_up_egress
from ktrdr_vm.report.ledger_row import KINDS, VERDICTS, check_fields, parse_row
from ktrdr_vm.report.suggest import render_suggestion

CLASSES = sorted(itertools.product(KINDS, VERDICTS))
FLOODS = [("dns", "deny"), ("drop", "deny"), ("http", "deny"), ("tls", "allow"), ("http", "allow")]


def count(rows: list[dict[str, Any]]) -> int:
    return sum(row.get("count", 1) for row in rows if row.get("rule") != "rotation")


@pytest.mark.parametrize("flood", FLOODS, ids="-".join)
@pytest.mark.parametrize("one", CLASSES, ids="-".join)
def test_no_class_of_lines_gives_way_to_a_flood_of_another(
    tmp_path: Path, one: tuple[str, str], flood: tuple[str, str]
) -> None:
    """Within a second, and across rotations: a line, or a total. Written and counted are what was decided."""
    moment = [100.0]
    ledger = Ledger(tmp_path / "egress.jsonl", "one", lambda: moment[0])
    for number in range(2000):
        moment[0] += 0.0001
        ledger.write(*flood, name=f"n{number}.example.com", rule="name")
    ledger.write(*one, name="seen.example.com", rule="x")
    ledger.close()
    rows = read_kept(tmp_path / "egress.jsonl")
    found = [row for row in rows if (row["kind"], row["verdict"]) == one and row.get("name") == "seen.example.com"]
    assert len(found) == 1 or one == flood
    assert count(rows) == 2001


@pytest.mark.parametrize(
    "place",
    [
        {"name": "paste.example.com", "address": "198.51.100.1", "port": 443},
        {"name": "", "address": "198.51.100.7", "port": 5432},
    ],
    ids=["name", "address"],
)
@pytest.mark.parametrize("kind", ["tls", "http", "tcp", "broker"])
def test_what_an_upload_sent_is_in_the_report_among_any_number_of_connections(
    tmp_path: Path, kind: str, place: dict[str, Any]
) -> None:
    """The guest chooses how many allowed connections end in the second in which an upload ends."""
    ledger = Ledger(tmp_path / "egress.jsonl", "one", lambda: 100.0)
    for number in range(1000):
        ledger.write("dns", "deny", name=f"n{number}.example.com", rule="name")
    flow = {"rule": "name", "bytes_in": 10, **place}
    for _ in range(500):
        ledger.write(kind, "allow", bytes_out=1, **flow)
    ledger.write(kind, "allow", bytes_out=10**12, **flow)
    ledger.close()
    [allowed], denied = sum_up_egress(read_kept(tmp_path / "egress.jsonl"), ())
    assert (allowed.count, allowed.bytes_out, allowed.bytes_in, allowed.port) == (
        501,
        10**12 + 500,
        5010,
        place["port"],
    )
    assert (allowed.host or allowed.address) == (place["name"] or place["address"])
    assert sum(one.count for one in denied) == 1000


def test_bytes_beyond_the_sums_that_are_kept_apart_are_counted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "egress.jsonl", "one", lambda: 100.0)
    for number in range(1000):
        ledger.write("tls", "allow", name=f"n{number}.example.com", port=443, rule="name", bytes_out=1000)
    ledger.close()
    rows = read_kept(tmp_path / "egress.jsonl")
    # A hundred lines, and of the rest so many destinations.
    assert len({row["name"] for row in rows if "name" in row}) == LINES_PER_SECOND + MOST_SUMS == 164
    allowed, _ = sum_up_egress(rows, ())
    assert sum(one.bytes_out for one in allowed) == 1_000_000 and sum(one.count for one in allowed) == 1000


@pytest.mark.parametrize("rotated", [False, True])
def test_a_destination_that_was_only_counted_has_its_rule_in_the_report_and_in_a_suggestion(
    tmp_path: Path, rotated: bool
) -> None:
    path = tmp_path / "egress.jsonl"
    ledger = Ledger(path, "one", lambda: 100.0)
    for kind, verdict, rule in (("tls", "allow", "observe"), ("dns", "deny", "name")):
        for number in [*[1] * LINES_PER_SECOND, 2]:
            ledger.write(kind, verdict, name=f"{verdict}{number}.example.com", port=443, rule=rule)
    ledger.close()
    if rotated:
        path.rename(older(path))
        add_to_totals(totals_of(path), older(path))
        older(path).unlink()
    allowed, denied = sum_up_egress(read_kept(path), ())
    assert [(one.host, one.rule) for one in allowed] == [(f"allow{n}.example.com", "observe") for n in (1, 2)]
    assert [(one.host, one.rule) for one in denied] == [(f"deny{n}.example.com", "dns: name") for n in (1, 2)]
    text = render_suggestion([vars(one) for one in (*allowed, *denied)])
    assert text.count("host: ") == 4 and "cannot be allowed" not in text


def test_a_full_disk_at_a_rotation_loses_no_line_and_does_not_end_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The totals cannot be written: what would be dropped stays, and the rotation is repeated."""
    monkeypatch.setattr(ledger_module, "MAX_BYTES", 4096)
    moment = [100.0]
    ledger = Ledger(tmp_path / "egress.jsonl", "one", lambda: moment[0])

    def write(times: int) -> None:
        for number in range(times):
            moment[0] += 1
            ledger.write("tls", "allow", name=f"n{number}.example.com", rule="name")

    write(40)
    with monkeypatch.context() as full:
        full.setattr("ktrdr_vm.host.durable.os.fsync", refuse_to_sync)
        write(40)
    write(40)
    ledger.close()
    assert count(read_kept(tmp_path / "egress.jsonl")) == 120


def test_a_guard_that_is_killed_during_a_rotation_counts_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The totals are written, and the files have their names from before."""
    monkeypatch.setattr(ledger_module, "MAX_BYTES", 4096)
    path, moment, kills = tmp_path / "egress.jsonl", [100.0], [False, True, True, False, False]
    rename = Path.rename

    def rename_or_end(self: Path, target: Path) -> Path:
        if self == path and kills and kills.pop(0):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_end)
    ledger = Ledger(path, "one", lambda: moment[0])
    for number in range(200):
        moment[0] += 1
        try:
            ledger.write("tls", "allow", name=f"n{number}.example.com", rule="name")
        except KeyboardInterrupt:
            assert totals_of(path).exists() and older(path).exists()
            assert count(read_kept(path)) == number + 1
            ledger = Ledger(path, "one", lambda: moment[0])
    ledger.close()
    assert not kills and count(read_kept(path)) == 200


def refuse_to_sync(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_sums_stay_numbers_that_a_line_can_have(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    ledger = Ledger(path, "one", lambda: 100.0)
    for _ in range(200):
        ledger.write("dns", "deny", rule="rate", count=2**53)
    ledger.close()
    path.with_name("egress.jsonl.1").write_bytes(path.read_bytes())
    add_to_totals(path.with_name("egress.jsonl.totals"), path.with_name("egress.jsonl.1"))
    assert all(row["count"] == 2**53 for row in read_kept(path))


def test_an_upload_is_in_the_report_after_every_rotation_that_a_flood_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_BYTES", 50_000)
    moment = [0.0]
    ledger = Ledger(tmp_path / "egress.jsonl", "one", lambda: moment[0])
    ledger.write(
        "tls",
        "allow",
        name="up.example.com",
        address="198.51.100.1",
        port=443,
        rule="name",
        bytes_out=5_000_000,
        bytes_in=300,
    )
    # Random names: no two are summed.
    chance = random.Random(1)
    for _ in range(10_000):
        moment[0] += 0.02
        ledger.write("dns", "deny", name="".join(chance.choices(string.ascii_lowercase, k=200)), rule="name")
    ledger.close()
    rows = read_kept(tmp_path / "egress.jsonl")
    allowed, denied = sum_up_egress(rows, ())
    assert [(one.host, one.port, one.count, one.bytes_out) for one in allowed] == [
        ("up.example.com", 443, 1, 5_000_000)
    ]
    assert sum(one.count for one in denied) == 10_000
    assert [row for row in rows if row.get("rule") == "rotation"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2_000_000


def test_totals_are_of_so_many_destinations_of_each_kind_and_verdict(tmp_path: Path) -> None:
    row = {"time": "2026-01-01T00:00:00.000Z", "instance_id": "one", "rule": "name", "port": 443}
    denied = [{**row, "kind": "dns", "verdict": "deny", "name": f"n{number}.example.com"} for number in range(2500)]
    upload = {**row, "kind": "tls", "verdict": "allow", "name": "up.example.com", "bytes_out": 7}
    (tmp_path / "dropped").write_text("".join(json.dumps(one) + "\n" for one in [*denied, upload]))
    assert add_to_totals(tmp_path / "totals", tmp_path / "dropped") == 2501
    # The first line has the digest of what was summed.
    rows = [json.loads(line) for line in (tmp_path / "totals").read_text().splitlines()[1:]]
    assert len(rows) == MOST_TOTALS + 2 == 2002 and count(rows) == 2501
    assert [one["count"] for one in rows if one["rule"] == "other destinations"] == [500]
    assert [one["bytes_out"] for one in rows if one["name"] == "up.example.com"] == [7]


GOOD: dict[str, Any] = {"name": "a.example.com", "rule": "name"}
WRONG: list[Any] = [None, True, -1, 2**60, 1.5, "x" * 5000, ["x"], {"a": 1}]
FIELDS = ["name", "address", "addresses", "ttl", "rule", "type", "message"]


def _messages() -> list[dict[str, Any]]:
    reserved = [
        {"note": ["dns", "allow", {**GOOD, key: "2020-01-01T00:00:00Z"}]}
        for key in ("time", "instance_id", "kind", "verdict")
    ]
    reserved += [
        {"note": ["dns", "deny", {**GOOD, "bytes_out": 5}]},
        {"note": ["tls", "allow", GOOD]},
        {"note": ["dns", "note", GOOD]},
    ]
    wrong = [
        {"note": ["dns", "deny", {**GOOD, field: value}]}
        for field in FIELDS
        for value in WRONG
        # What is right for some of them.
        if not (field == "addresses" and value == ["x"])
    ]
    counts = [{"count": ["rate", value]} for value in WRONG] + [{"count": ["name", 1]}, {"count": ["rate", 0]}]
    return [*reserved, *wrong, *counts]


@pytest.mark.parametrize("message", _messages(), ids=lambda message: json.dumps(message)[:60])
def test_what_the_resolver_must_not_say_is_refused_and_the_refusal_is_a_line(
    tmp_path: Path, message: dict[str, Any]
) -> None:
    ledger = Ledger(tmp_path / "egress.jsonl", "one")
    resolver = ResolverSupervisor(tmp_path, {}, (None, None), 0, None, None, None, ledger)  # type: ignore[arg-type]
    resolver.channel, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    resolver.take(json.dumps(message).encode())
    [row] = [parse_row(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert row is not None and row["kind"] == "guard" and "was refused" in row["message"]
    assert row["instance_id"] == "one" and not row["time"].startswith("2020")


def test_what_the_resolver_may_say_is_a_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "egress.jsonl", "one")
    resolver = ResolverSupervisor(tmp_path, {}, (None, None), 0, None, None, None, ledger)  # type: ignore[arg-type]
    resolver.channel, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for fields in ({**GOOD, "type": "AAAA"}, {**GOOD, "addresses": ["198.51.100.1"], "ttl": 60}):
        resolver.take(json.dumps({"note": ["dns", "deny", fields]}).encode())
    rows = read_kept(tmp_path / "egress.jsonl")
    assert [row["kind"] for row in rows] == ["dns", "dns"] and rows[1]["addresses"] == ["198.51.100.1"]


@pytest.mark.parametrize(
    "fields", [{"time": "x"}, {"instance_id": "x"}, {"new": 1}, {"port": 65536}, {"count": "1"}, {"name": 5}], ids=str
)
def test_fields_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        check_fields(fields)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"{}",
        b'{"time": 5, "instance_id": "x", "kind": "dns", "verdict": "deny"}',
        b"[" * 100_000,
    ],
    ids=range(7),
)
def test_what_is_no_line_is_none(line: bytes) -> None:
    assert parse_row(line) is None


def test_of_a_line_that_a_person_rewrote_the_fields_are_what_they_must_be() -> None:
    line = {
        "time": "2026-01-01T00:00:00.000Z",
        "instance_id": "x",
        "kind": "dns",
        "verdict": "deny",
        "count": "y",
        "port": "x",
        "more": 1,
    }
    assert parse_row(json.dumps(line)) == {key: line[key] for key in ("time", "instance_id", "kind", "verdict")}
