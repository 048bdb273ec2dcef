"""The connection over which secrets were sent: ended in the guest before its memory is copied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.instance import secrets as module


class Loaded:
    """An instance whose guest names these processes. `log` is what was done, in order."""

    def __init__(self, said: bytes, agent: object = True) -> None:
        self.log: list[str] = []
        self.identity = SimpleNamespace(domain="ktrdr-one")
        self.libvirt = SimpleNamespace(agent=lambda *_: agent)
        self._said = said

    def connect(self) -> Any:
        return SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout=self._said))

    def close(self) -> None:
        self.log.append("close")


def end(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def run_script(_libvirt: Any, _domain: str, script: str, _doing: str, *, limit: float) -> str:
        loaded.log.append(next(line.strip() for line in script.splitlines() if "for pid in" in line))
        return ""

    monkeypatch.setattr(module, "run_script", run_script)
    module.end_connection(loaded)  # type: ignore[arg-type]
    return [line.partition(";")[0] for line in loaded.log]


def test_the_processes_of_the_connection_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert end(Loaded(b"812\n810\n"), monkeypatch) == ["close", "for pid in 812 810"]


@pytest.mark.parametrize("said", [b"", b"$(reboot)\n", b"1;2\n", b"\xff 99999999\n", b"-1\n"])
def test_what_a_guest_says_becomes_no_part_of_the_script(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end(Loaded(said), monkeypatch) == ["close"]


def test_a_guest_without_an_agent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert end(Loaded(b"812\n", agent=None), monkeypatch) == ["close"]
