"""A child that reads the guest's bytes may be the guest's: whatever it says, the guard lives, and says so in the
ledger."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.escalations import EscalationSupervisor
from ktrdr_vm.egress.flow_log import ProxyLog
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy import control
from ktrdr_vm.egress.proxy.control import ProxyControl, Session
from ktrdr_vm.egress.resolver.supervisor import ResolverSupervisor
from ktrdr_vm.egress.rules import Rules
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.plan.egress_policy import compile_policy
from ktrdr_vm.profile.egress_rule import EgressRule

LIES = [
    b"[" * 60_000,
    b"null",
    b"5",
    b"\xff",
    b'{"note": ["dns", "allow", 5]}',
    b'{"count": ["rate", 1e999]}',
    b'{"allow": ["x", ["not an address"], 1e999], "number": 1}',
    b'{"op": "submit", "packet": [], "suppressed": 1e999}',
    b'{"op": "submit", "packet": null, "suppressed": {}}',
]


def connect(one: Any) -> socket.socket:
    one.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.channel.setblocking(False)
    return theirs


@pytest.mark.parametrize("said", LIES, ids=range(len(LIES)))
def test_nothing_that_a_child_says_ends_the_guard(tmp_path: Path, said: bytes) -> None:
    ledger = Ledger(tmp_path / "egress.jsonl", "one")
    resolver = ResolverSupervisor(tmp_path, {}, (None, None), 0, None, None, None, ledger)  # type: ignore[arg-type]
    connect(resolver)
    resolver.take(said)
    told = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in told] == ["guard"] and "was refused" in told[0]["message"]
    store = EscalationStore(tmp_path / "escalations", "one")
    supervisor = EscalationSupervisor(tmp_path, store, None, 0, (0, 0), ledger, None)  # type: ignore[arg-type]
    inbox = connect(supervisor)
    supervisor.answer(said)
    assert "error" in json.loads(inbox.recv(65536)) and store.list() == []


LINE = {"f": "other", "v": "allow", "n": "-", "a": "198.51.100.1", "p": 22, "u": 1, "d": 2, "t": "--", "m": 3}
VALUES: list[object] = [1e999, [], {}, None, "", "x", -1, 2**70]
PROXY_LIES = [
    b"{" + b"[" * 15_000,
    b'{"f":' * 3000,
    *(json.dumps(LINE | {key: value}).encode() for key in LINE for value in VALUES),
]


@pytest.mark.parametrize("line", PROXY_LIES, ids=range(len(PROXY_LIES)))
@pytest.mark.parametrize("observe", [False, True])
def test_no_line_of_the_proxy_ends_the_guard(tmp_path: Path, line: bytes, observe: bool) -> None:
    """Each is a decision, or is counted as a line that cannot be read."""
    ledger = Ledger(tmp_path / "egress.jsonl", "one")
    sets = AllowSets("ktrdr-one", Rules(compile_policy((EgressRule(cidr=None, host="a.example"),), observe=observe)))
    sets._keep_past("198.51.100.0/24 . 22", "e1")
    log = ProxyLog(ledger, sets, SimpleNamespace(find_grant=lambda slot: ""), None)  # type: ignore[arg-type]
    read, write = os.pipe()
    os.write(write, line + b"\n")
    log.read(read)
    os.close(read)
    os.close(write)
    [row] = [json.loads(one) for one in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert row["verdict"] in ("allow", "deny") or row["rule"] == "suppressed"


def test_lines_that_the_proxy_dropped_are_counted_once(tmp_path: Path) -> None:
    """It counts what was not read in time, and does not wait for the guard."""
    ledger, lost = Ledger(tmp_path / "egress.jsonl", "one"), [0]
    granting, proxy = SimpleNamespace(find_grant=lambda slot: ""), SimpleNamespace(count_lost_lines=lambda: lost[0])
    log = ProxyLog(ledger, AllowSets("ktrdr-one", Rules(compile_policy(()))), granting, proxy)  # type: ignore[arg-type]
    read, write = os.pipe()
    for lost[0] in (0, 7, 7, 9):
        os.write(write, json.dumps(LINE).encode() + b"\n")
        log.read(read)
        log.count_lost()
    os.close(read)
    os.close(write)
    rows = [json.loads(one) for one in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert [row["count"] for row in rows if row["rule"] == "suppressed"] == [7, 2]


def test_a_proxy_that_starts_begins_another_log(tmp_path: Path) -> None:
    """The half line of one that was killed is a decision that is counted, and takes no line of the next with it."""
    ledger, lost = Ledger(tmp_path / "egress.jsonl", "one"), [7]
    granting, proxy = SimpleNamespace(find_grant=lambda slot: ""), SimpleNamespace(count_lost_lines=lambda: lost[0])
    log = ProxyLog(ledger, AllowSets("ktrdr-one", Rules(compile_policy(()))), granting, proxy)  # type: ignore[arg-type]
    read, write = os.pipe()
    line = json.dumps(LINE).encode() + b"\n"
    for said, lost[0] in ((line + line[:20], 7), (line, 9)):
        log.proxy_starts()
        os.write(write, said)
        log.read(read)
        log.count_lost()
    os.close(read)
    os.close(write)
    rows = [json.loads(one) for one in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert [(row["verdict"], row.get("count", 1)) for row in rows] == [
        ("allow", 1), ("note", 7), ("note", 1), ("allow", 1), ("note", 9),
    ]  # fmt: skip


class Talker:
    """A socket on which the proxy answers the same without end, or once."""

    def __init__(self, said: bytes, times: int) -> None:
        self.said, self.left = said, times

    def __call__(self, *_: object) -> Talker:
        return self

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None: ...
    def settimeout(self, _seconds: float) -> None: ...
    def connect(self, _address: object) -> None: ...
    def sendall(self, _data: bytes) -> None: ...

    def recv(self, _count: int) -> bytes:
        self.left -= 1
        return self.said if self.left >= 0 else b""


def ask(monkeypatch: pytest.MonkeyPatch, directory: Path, said: bytes, times: int = 1) -> list[Session]:
    monkeypatch.setattr(control.socket, "socket", Talker(said, times))
    return ProxyControl(directory).list_by_address()


def test_an_answer_of_the_proxy_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the bound it is collected in the memory of the guard, which does nothing else meanwhile."""
    with pytest.raises(ProvisionError, match="its answer does not end"):
        ask(monkeypatch, tmp_path, b"x" * 65536, times=2000)


@pytest.mark.parametrize("said", ["0x1: a\n", "0x1: ", "  frontend=other ", " addr=a", "0x1: \n  frontend=a b\n", "\n"])
def test_any_list_of_connections_is_read_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str) -> None:
    began = time.process_time()
    assert ask(monkeypatch, tmp_path, said.encode() * (400_000 // len(said))) == []
    assert time.process_time() - began < 10


def test_the_connections_by_address_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = """0x5581: [30/Nov/2026:01:00:00.000000] id=1 proto=tcpv4 source=10.213.0.2:40000
  flags=0x48e, conn_retries=0, conn_exp=<NEVER> conn_et=0x000 srv_conn=0x55, pend_pos=(nil) waiting=0 epoch=0
  frontend=other (id=5 mode=tcp), listener=? (id=1) addr=198.51.100.1:22
  backend=original_destination (id=6 mode=tcp) addr=192.0.2.1:3000
0x5582: [30/Nov/2026:01:00:00.000000] id=2 proto=tcpv4 source=10.213.0.2:40001
  frontend=tls (id=3 mode=tcp), listener=? (id=1) addr=198.51.100.2:443
0x5583: [30/Nov/2026:01:00:00.000000] id=3 proto=unix_stream source=unix:1
  frontend=GLOBAL (id=0 mode=tcp), listener=? (id=1) addr=unix:1
"""
    assert ask(monkeypatch, tmp_path, said.encode()) == [Session("0x5581", "198.51.100.1", 22)]
