"""A child that reads the guest's bytes may be the guest's: whatever it says, the guard lives, and says so in the
ledger."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress.escalations import EscalationSupervisor
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.resolver.supervisor import ResolverSupervisor
from ktrdr_vm.escalation.store import EscalationStore

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
