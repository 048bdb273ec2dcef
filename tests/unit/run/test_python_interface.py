"""`ktrdr_vm.api` for a program: nothing is held after an error, and no command is none."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ktrdr_vm
from ktrdr_vm import api
from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile
from tests.unit.templates.test_template_key import FACTS


@pytest.fixture
def held() -> list[str]:
    """The locks that are held now."""
    return []


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: list[str]) -> api.Instance:
    source = {"version": 1, "name": "p", "image": "i"}
    plan = Plan(build_profile(source), FACTS, Identity("one"), source)
    gathered: Any = SimpleNamespace(plan=plan, beyond=())

    @contextlib.contextmanager
    def locked() -> Iterator[None]:
        held.append("one")
        try:
            yield
        finally:
            held.remove("one")

    class Stage:
        def __init__(self, *_: object, **__: object) -> None:
            self.instance = SimpleNamespace(locked=locked)
            self.harvest = SimpleNamespace(keep_evidence=lambda _: None)

        def provision(self, _: object) -> None:
            held.append("made")

        def destroy(self, _: object) -> tuple[None, None]:
            held.remove("made")
            return None, None

    for name, value in {
        "require_root": lambda: None, "forbid_cores": lambda: None, "find_home": lambda: Home(tmp_path),
        "gather": lambda *_, **__: gathered, "Libvirt": lambda: None, "Stage": Stage,
    }.items():  # fmt: skip
        monkeypatch.setattr(api, name, value)
    monkeypatch.setattr(Home, "create", lambda _: None)
    return api.Instance("p.yaml")


def test_an_instance_is_destroyed_on_exit_also_after_an_exception(
    instance: api.Instance, monkeypatch: pytest.MonkeyPatch, held: list[str]
) -> None:
    monkeypatch.setattr(api, "create_run", lambda *_: None)
    monkeypatch.setattr(api, "RunDirectory", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(api, "Recorder", lambda directory, _: SimpleNamespace(directory=directory))
    with instance:
        assert held == ["one", "made"]
    with pytest.raises(ValueError, match="of the block"), instance:
        raise ValueError("of the block")
    assert held == []


def test_no_lock_stays_if_there_is_no_run_directory(
    instance: api.Instance, monkeypatch: pytest.MonkeyPatch, held: list[str]
) -> None:
    def refuse(*_: object) -> None:
        assert held == ["one"]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api, "create_run", refuse)
    with pytest.raises(OSError, match="No space"):
        instance.__enter__()
    assert held == []


@pytest.mark.parametrize("command", [[], [""], "", "  \n"])
def test_no_command_is_refused(instance: api.Instance, command: Any) -> None:
    living = object.__new__(api.LivingInstance)
    for run in (instance.exec, living.exec):
        with pytest.raises(UsageError, match="no command was given"):
            run(command)


def test_what_is_exported_is_that_of_the_module_and_says_what_it_raises() -> None:
    for name in ktrdr_vm.__all__:
        assert getattr(ktrdr_vm, name) is getattr(api, name)
    error = KtrdrError("what", where="where", hint="next")
    assert (error.message, error.where, error.hint) == ("what", "where", "next")


def test_as_root_the_world_is_not_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    monkeypatch.setattr(api, "enter_own_world", lambda: entered.append("world"))
    for user in (0, 1000):
        monkeypatch.setattr(api.os, "geteuid", lambda user=user: user)
        api.enter_world()
    assert entered == ["world"] and not inspect.signature(api.enter_world).parameters


def test_a_download_that_fails_leaves_the_destination_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = [True]

    def download(_: str, file: Any, *, max_bytes: int) -> int:
        file.write(b"new")
        if fails[0]:
            raise UsageError("no", where="x", hint="y")
        return max_bytes

    guest = SimpleNamespace(download=download)
    monkeypatch.setattr(api.Instance, "_require", lambda _: SimpleNamespace(connect=lambda: guest))
    instance = object.__new__(api.Instance)
    there, link = tmp_path / "there", tmp_path / "link"
    there.write_bytes(b"old")
    link.symlink_to(there)
    for name in ("there", "link", "absent"):
        with pytest.raises(UsageError):
            instance.download("/x", tmp_path / name)
    assert sorted(tmp_path.iterdir()) == [link, there] and there.read_bytes() == b"old"
    fails[0] = False
    assert instance.download("/x", link, max_bytes=3) == 3
    assert link.is_symlink() and there.read_bytes() == b"new" and sorted(tmp_path.iterdir()) == [link, there]
