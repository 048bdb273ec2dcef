"""How the guard is started: nothing of the folder that the person stands in gets into a process of root's."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import process
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.resources import guard as guard_module
from ktrdr_vm.instance.resources.base import Target
from ktrdr_vm.instance.resources.guard import Guard
from ktrdr_vm.instance.waiting_guard import start_guard


def test_modules_of_the_workspace_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` and `-c` put the current folder first: a `json.py` in the branch would run as root. `-I` leaves it
    out."""
    started: list[tuple[list[str], dict[str, Any]]] = []

    class Stop(Exception):
        pass

    def start(argv: list[str], **options: Any) -> None:
        started.append(([str(word) for word in argv], options))
        raise Stop

    monkeypatch.setattr(process, "start", start)
    monkeypatch.chdir(tmp_path)
    Home(tmp_path).instances.mkdir()
    with pytest.raises(Stop):
        start_guard(Home(tmp_path).instance("one").guard)
    argv, options = started[0]
    assert "-I" in argv[: argv.index("-c")]
    folders = argv[argv.index("-c") + 2].split(":")
    assert folders and all(folder.startswith("/") and not Path(folder).is_relative_to(tmp_path) for folder in folders)
    assert options["cwd"] == Path("/")


def test_a_folder_that_the_owner_may_not_enter_is_an_error_with_a_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(process.subprocess, "Popen", refuse)
    with pytest.raises(HostError, match=r"cannot be started in .*Permission denied"):
        process.run(["/bin/true"], timeout=1, cwd=tmp_path)


def test_a_guard_has_not_ended_before_it_let_go_of_its_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that ends loses its arguments first and its lock after that. Seen: the next `create` took it for one
    that runs."""
    target = Target(parse_instance_id("one"), Home(tmp_path).instance("one"), None)  # type: ignore[arg-type]
    target.paths.guard.mkdir(parents=True)
    held = os.open(target.paths.guard / "guard.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            os.close(held)

    monkeypatch.setattr(guard_module, "find_guards", lambda _: [])
    monkeypatch.setattr(guard_module.time, "sleep", sleep)
    Guard(target).stop()
    assert len(waited) == 3
