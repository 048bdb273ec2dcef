"""Streams as they are shown."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.escalation.packet import Packet
from ktrdr_vm.escalation.store import Escalation
from ktrdr_vm.monitoring.top.progress import Progress
from ktrdr_vm.monitoring.top.streams import Stream


@pytest.fixture
def streams() -> list[Stream]:
    packet: Any = Packet(
        "network", "the model cannot be fetched", "no rule for it", ("wait", "bundle it"), "allow", "may I", "curl: (7) \x1b[2J",
        {"host": "models.example", "ports": [443]}, 600,
    )  # fmt: skip
    asks = (Escalation("e1", "stream-a", packet, "2026-01-02T03:04:05.678Z"),)
    working = Progress("gate startability", "startability", "start all services", lines=("03:04:05 phase create",))
    return [
        Stream("stream-a", "running", age=75.0, progress=working, cpu=1.5, memory=3 << 30, denials=7, asks=asks),
        Stream("stream-b", "suspended", mode="interactive", gates="2 passed"),
        Stream("stream-c", "waiting", place="cluster", request_id="r20260102-030405-abcdef", note="no node is free"),
    ]
