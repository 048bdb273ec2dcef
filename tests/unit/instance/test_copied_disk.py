"""The disk of a snapshot is copied while nothing writes to it, and the guest goes on whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import GuestError, HostError
from ktrdr_vm.instance import snapshot as module


class Copied:
    """One running instance, with a log of what is done to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, agent: bool, full: bool) -> None:
        self.log: list[str] = []
        self.libvirt = self
        self.identity = SimpleNamespace(domain="ktrdr-one")
        self.paths = SimpleNamespace(overlay=Path("overlay"))

        def wait_agent(*_: object, **__: object) -> None:
            if not agent:
                raise GuestError("no agent", where="x", hint="y")

        def run(words: list[Any], **_: object) -> None:
            self.log.append("copy")
            if full:
                raise HostError("no space", where="x", hint="y")
            Path(words[-1]).touch()

        monkeypatch.setattr(module, "wait_agent", wait_agent)
        monkeypatch.setattr(module.process, "run", run)

    def connect(self) -> Any:
        def run(script: str, **_: object) -> Any:
            names = {module._BLANK: "sync" if script.rstrip().endswith("sync") else "", module._UNBLANK: "restore"}
            self.log.append(names.get(script, script.split()[0]))
            return SimpleNamespace(exit_code=0)

        return SimpleNamespace(run=run)

    def suspend(self, _: str) -> None:
        self.log.append("pause")

    def resume(self, _: str) -> None:
        self.log.append("continue")

    def agent(self, _domain: str, command: str, **_: object) -> int:
        self.log.append(command.rpartition("-")[2])
        return 2


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("agent", [False, True])
def test_it_is_paused_for_the_copy_with_its_file_systems_frozen_or_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: bool, full: bool
) -> None:
    one = Copied(monkeypatch, agent=agent, full=full)
    try:
        module.copy_disk(one, tmp_path / "disk")  # type: ignore[arg-type]
    except HostError:
        assert full
    copied = ["pause", "copy", "continue"]
    frozen = ["freeze", *copied, "thaw"] if agent else copied
    assert one.log == ["sync", *frozen, "restore", *([] if full else ["date"])]
