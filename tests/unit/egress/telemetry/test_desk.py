"""The guard's end of telemetry believes little of what the relay says, and is never held up by it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.telemetry import supervisor as telemetry_desk
from ktrdr_vm.egress.telemetry.supervisor import Telemetry, TelemetryDesk, open_telemetry


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TelemetryDesk:
    monkeypatch.setattr(telemetry_desk, "bind_early", lambda *_: None)
    config = {
        "instance_id": "one", "gateway": "10.213.0.1", "ledger": str(tmp_path / "egress.jsonl"),
        "telemetry": {"collector": {"host": "127.0.0.1"}, "journal": str(tmp_path / "journal.json")},
    }  # fmt: skip
    made = open_telemetry(config, Ledger(tmp_path / "egress.jsonl", "one"))
    assert isinstance(made, TelemetryDesk)
    return made


def connect(desk: TelemetryDesk) -> socket.socket:
    """The relay's end of a channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    desk._channels["relay"] = ours
    return theirs


def rows(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]


def test_counts_are_a_line_and_each_is_counted_once(desk: TelemetryDesk, tmp_path: Path) -> None:
    relay = connect(desk)
    for counts in ({"accepted": 2, "claims": 1}, {"accepted": 3}):
        relay.send(json.dumps(counts).encode())
        desk.write()
    told = [{name: row[name] for name in ("kind", "verdict", "instance_id", "accepted")} for row in rows(tmp_path)]
    common = {"kind": "telemetry", "verdict": "note", "instance_id": "one"}
    assert told == [common | {"accepted": 2}, common | {"accepted": 3}]
    desk.write()
    assert len(rows(tmp_path)) == 2


@pytest.mark.parametrize(
    "said", [b"[" * 60_000, b"5", b"null", b"\xff", b'{"sent": -1}', b'{"evil": 5, "accepted": 1e30, "sent": "9"}', b'{"sent": 9e']
)
def test_a_relay_that_lies_is_no_harm(desk: TelemetryDesk, tmp_path: Path, said: bytes) -> None:
    relay = connect(desk)
    relay.send(said)
    desk.write()
    assert rows(tmp_path) == []


def test_a_relay_that_never_stops_talking_holds_nobody_up(desk: TelemetryDesk) -> None:
    """More is waiting than is read at once; and one that is asked and says nothing is waited for a moment."""
    relay = connect(desk)
    relay.setblocking(False)
    sent = 0
    try:
        while True:
            sent += relay.send(b'{"accepted": 1}') > 0
    except BlockingIOError:
        pass
    desk.write(5)
    assert sent > telemetry_desk._MOST_AT_ONCE
    silent = connect(desk)
    began = time.monotonic()
    desk.write(0.2)
    assert silent.recv(100) == b"{}" and time.monotonic() - began < 10


def test_without_telemetry_nothing_is_done(tmp_path: Path) -> None:
    none = open_telemetry({"telemetry": None}, Ledger(tmp_path / "egress.jsonl", "one"))
    assert type(none) is Telemetry and (none.pids, none.operations) == ({}, {})
    for step in (none.look, none.write, none.end):
        step()
