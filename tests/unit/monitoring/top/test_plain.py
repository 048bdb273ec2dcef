"""`top --plain`: each change once, in words."""

from __future__ import annotations

from dataclasses import replace

from ktrdr_vm.monitoring.top.plain import Announcer
from ktrdr_vm.monitoring.top.streams import Stream


def test_each_change_is_said_once(streams: list[Stream]) -> None:
    said: list[str] = []
    announcer = Announcer(said.append)
    announcer.show(streams)
    assert said[0] == "stream-a, running, startability: start all services, memory 3.2 GB, 7 connections denied, asks 1"
    assert said[1] == "stream-a asks, e1:"
    asked = ["asks for   network", "  host     models.example", "  ports    [443]", "  for      600 s"]
    assert [f"    {line}" for line in asked] == said[2:6]
    assert "    evidence   curl: (7) \\x1b[2J" in said
    assert "    answer with: ktrdr-vm escalations approve stream-a e1 --reason TEXT (or deny)" in said
    assert said[-2:] == ["stream-b, suspended, 2 passed", "stream-c, at cluster, waiting, no node is free"]
    said.clear()
    # CPU, age and a little memory change all the time.
    announcer.show([replace(streams[0], cpu=0.1, age=80.0, memory=(3 << 30) + 5), *streams[1:]])
    assert said == []
    announcer.show([replace(streams[0], denials=8)])
    assert said[0] == "stream-a, running, startability: start all services, memory 3.2 GB, 8 connections denied, asks 1"
    assert sorted(said[1:]) == ["r20260102-030405-abcdef has gone", "stream-b has gone"]


def test_nothing_is_said_of_nothing_but_once() -> None:
    said: list[str] = []
    announcer = Announcer(said.append)
    announcer.show([])
    announcer.show([])
    assert said == ["no streams"]
