"""The guard's end of telemetry believes little of what the relay says, and is never held up by it."""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.supervised_child import SERVES
from ktrdr_vm.egress.telemetry import supervisor as telemetry_supervisor
from ktrdr_vm.egress.telemetry.messages import COUNTS, Asked, Counted, encode
from ktrdr_vm.egress.telemetry.supervisor import Telemetry, TelemetrySupervisor, open_telemetry


@pytest.fixture
def supervisor(tmp_path: Path) -> TelemetrySupervisor:
    config = {
        "instance_id": "one", "ledger": str(tmp_path / "egress.jsonl"),
        "telemetry": {"collector": {"host": "127.0.0.1"}, "journal": str(tmp_path / "journal.json")},
    }  # fmt: skip
    made = open_telemetry(config, Ledger(tmp_path / "egress.jsonl", "one"), selectors.DefaultSelector(), socket.socket)
    assert isinstance(made, TelemetrySupervisor)
    return made


def connect(supervisor: TelemetrySupervisor) -> socket.socket:
    """The relay's end of a channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    supervisor._channels["relay"] = ours
    return theirs


def rows(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]


def test_counts_are_a_line_and_each_is_counted_once(supervisor: TelemetrySupervisor, tmp_path: Path) -> None:
    relay = connect(supervisor)
    for counts in ({"accepted": 2, "claims": 1}, {"accepted": 3}):
        relay.send(json.dumps(counts).encode())
        supervisor.write()
    told = [{name: row[name] for name in ("kind", "verdict", "instance_id", "accepted")} for row in rows(tmp_path)]
    common = {"kind": "telemetry", "verdict": "note", "instance_id": "one"}
    assert told == [common | {"accepted": 2}, common | {"accepted": 3}]
    supervisor.write()
    assert len(rows(tmp_path)) == 2


def test_a_line_is_written_after_so_many_seconds(
    supervisor: TelemetrySupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = connect(supervisor)
    now = 1000.0
    monkeypatch.setattr(supervisor, "_clock", lambda: now)
    monkeypatch.setattr(supervisor, "_written", now)
    for later, lines in ((1.0, 0), (28.5, 0), (1.0, 1), (29.0, 1), (2.0, 2), (40.0, 2)):
        if later < 40:
            relay.send(b'{"accepted": 1}')
        now += later
        supervisor.poll()
        assert len(rows(tmp_path)) == lines
    assert [row["accepted"] for row in rows(tmp_path)] == [3, 2]


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 60_000,
        b"5",
        b"null",
        b"\xff",
        b'{"sent": -1}',
        b'{"evil": 5, "accepted": 1e30, "sent": "9"}',
        b'{"sent": 9e',
    ],
)
def test_a_relay_that_lies_is_no_harm(supervisor: TelemetrySupervisor, tmp_path: Path, said: bytes) -> None:
    relay = connect(supervisor)
    relay.send(said)
    supervisor.write()
    assert rows(tmp_path) == []


def test_a_relay_that_never_stops_talking_holds_nobody_up(supervisor: TelemetrySupervisor) -> None:
    """More is waiting than is read at once; and one that is asked and says nothing is waited for a moment."""
    relay = connect(supervisor)
    relay.setblocking(False)
    sent = 0
    try:
        while True:
            sent += relay.send(b'{"accepted": 1}') > 0
    except BlockingIOError:
        pass
    supervisor.write(5)
    assert sent > telemetry_supervisor._MOST_AT_ONCE
    silent = connect(supervisor)
    began = time.monotonic()
    supervisor.write(0.2)
    assert silent.recv(100) == b"{}" and time.monotonic() - began < 10


def test_without_telemetry_nothing_is_done(tmp_path: Path) -> None:
    def listen() -> socket.socket:
        pytest.fail("it listens")

    none = open_telemetry(
        {"telemetry": None}, Ledger(tmp_path / "egress.jsonl", "one"), selectors.DefaultSelector(), listen
    )
    assert type(none) is Telemetry and (none.parts, none.operations) == ({}, {})
    for step in (none.poll, none.write):
        step()


class Host:
    """Processes that are files: what is started is written down, with the ends of the pipe and of the channel that it
    was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[str] = []
        self.living: dict[str, Any] = {}
        self.channels: dict[str, socket.socket] = {}
        self.pipes: dict[str, socket.socket] = {}
        monkeypatch.setattr(telemetry_supervisor.process, "start_module", self._start)

    def _start(self, _module: str, words: list[str], **_: object) -> Any:
        role, channel, pipe = str(words[1]), *map(int, words[2:4])
        self.started.append(role)
        said, said_end = os.pipe()
        os.close(said_end)
        for known, number in ((self.channels, channel), (self.pipes, pipe)):
            if role in known:
                known[role].close()
            known[role] = socket.socket(fileno=os.dup(number))
        made = SimpleNamespace(pid=len(self.started), returncode=None, stderr=os.fdopen(said, "rb", buffering=0))
        made.poll = lambda: made.returncode
        made.kill = lambda: self.end(role, -9)
        self.living[role] = made
        return made

    def end(self, role: str, code: int) -> None:
        self.living[role].returncode = code
        self.pipes[role].close()

    def is_joined(self) -> bool:
        """True when the two have the ends of one pipe."""
        self.pipes["relay"].send(b"x")
        self.pipes["sender"].settimeout(0.2)
        try:
            return self.pipes["sender"].recv(1) == b"x"
        except OSError:
            return False


@pytest.mark.parametrize("role", ["relay", "sender"])
def test_one_that_ends_is_started_again_and_joined_with_the_other(
    supervisor: TelemetrySupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr(supervisor, "_listener", SimpleNamespace(fileno=lambda: 0))
    host, other = Host(monkeypatch), {"relay": "sender", "sender": "relay"}[role]

    def poll() -> None:
        for part in supervisor.parts.values():
            part.poll()
        supervisor.poll()

    poll()
    assert sorted(host.started) == ["relay", "sender"] and host.is_joined()
    for channel in host.channels.values():
        assert json.loads(channel.recv(65536))["instance_id"] == "one"
        channel.send(SERVES)
    poll()
    assert {name: part.describe()["serves"] for name, part in supervisor.parts.items()} == {
        "relay": True,
        "sender": True,
    }
    host.channels[role].send(encode(Counted({"accepted": 4})))
    host.end(role, 3)
    poll()
    poll()
    assert host.started[2:] == [role, other] and host.is_joined()
    notes = [str(row["message"]) for row in rows(tmp_path) if row["kind"] == "guard"]
    assert notes == [
        f"the telemetry {role} ended and is started again at once: it ended with exit code 3",
        f"the telemetry {other} ended and is started again at once: it ended with signal 9",
    ]
    supervisor.write()
    assert rows(tmp_path)[-1]["accepted"] == 4, "what it said before its end counts"


def test_another_run_is_told_and_who_does_not_hear_it_is_ended(
    supervisor: TelemetrySupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_listener", SimpleNamespace(fileno=lambda: 0))
    host = Host(monkeypatch)
    for part in supervisor.parts.values():
        part.poll()
    assert host.channels["relay"].recv(65536)
    host.channels["sender"].close()
    supervisor.operations["run_began"]({"run_id": "r2"})
    assert Asked.from_json(json.loads(host.channels["relay"].recv(65536))) == Asked("r2")
    assert (host.living["relay"].returncode, host.living["sender"].returncode) == (None, -9)


@pytest.mark.parametrize(
    "message", [Counted({"accepted": 2, "sent": 1}), Counted({"sent": 1}, told=True), Counted({}, told=True)]
)
def test_counts_are_read_back_and_nothing_else_is_a_count(message: Counted) -> None:
    content = message.to_json()
    assert Counted.from_json(json.loads(encode(message))) == message and content.keys() <= {*COUNTS, "told"}
    refused: list[object] = [
        {**content, "more": 1},
        {**content, "sent": 0},
        {**content, "sent": True},
        {**content, "told": 2},
        {},
        None,
        [],
        5,
    ]
    for wrong in refused:
        with pytest.raises(ValueError):
            Counted.from_json(wrong)


def test_a_question_may_name_another_run() -> None:
    for message in (Asked(), Asked("r1"), Asked("")):
        assert Asked.from_json(json.loads(encode(message))) == message
    refused: list[object] = [{"more": 1}, {"run_id": "r", "more": 1}, {"run_id": 5}, 5, [1], "x"]
    for wrong in refused:
        with pytest.raises(ValueError):
            Asked.from_json(wrong)
