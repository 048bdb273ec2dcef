"""The order of going to sleep and of waking, also when it was cut off: what protects stands before the machine runs, and after it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import GuestError, KtrdrError, ProvisionError, UsageError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import DomainFacts
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance import suspend as suspension

ONE = parse_instance_id("one")


class Machine:
    """One instance as suspension sees it: a domain, a saved state, a network, and a log of what was done in which order."""

    def __init__(self, tmp_path: Path, state: str, domain: str | None, *, saved: bool) -> None:
        self.home, self.identity = Home(tmp_path), ONE
        self.paths = self.home.instance("one")
        self.paths.directory.mkdir(parents=True)
        self.log: list[str] = []
        self.domain = domain
        self.keeps_secret = False
        if saved:
            self.paths.saved.write_bytes(b"state")
        Journal(self.paths.journal, "one", mode="interactive", state=state).save()
        self.libvirt = self
        self.plan = SimpleNamespace(
            profile=SimpleNamespace(mode="interactive", resources=SimpleNamespace(memory=1)), facts=SimpleNamespace(accelerator="tcg")
        )

    # as Instance

    def require_journal(self) -> Journal:
        from ktrdr_vm.host.journal import read_journal

        journal = read_journal(self.paths.journal)
        assert journal is not None
        return journal

    def open_resources(self) -> tuple[Any, ...]:
        blueprint = SimpleNamespace(documents={"domain.xml": "<domain/>"})
        target = SimpleNamespace(paths=self.paths, identity=ONE, libvirt=self)
        kinds = ("overlay", "seed", "firewall", "guard", "tap", "domain")
        return tuple(
            SimpleNamespace(
                kind=kind, key=kind, name=kind, target=target, blueprint=blueprint, remove=lambda kind=kind: self.log.append(f"-{kind}")
            )
            for kind in kinds
        )

    def ensure(self, resource: Any, *_: object) -> None:
        self.log.append(f"+{resource.kind}")

    def require_closed(self) -> None:
        self.log.append("closed")

    def take_secrets(self) -> list[str]:
        if self.keeps_secret:
            raise GuestError("nobody answers", where="one", hint="look")
        self.log.append("-secrets")
        return []

    def connect(self, **_: object) -> Any:
        return SimpleNamespace(run=lambda words, **_: (self.log.append(words[0]), SimpleNamespace(exit_code=0))[1])

    def complete(self, *_: object, **__: object) -> None:
        self.log.append("+secrets")

    def close(self) -> None: ...

    # as Libvirt

    def find(self, _name: str) -> DomainFacts | None:
        return None if self.domain is None else DomainFacts("ktrdr-one", "one", str(self.home.root), "interactive", self.domain, True)

    def save(self, _name: str, path: Path) -> None:
        path.write_bytes(b"state")
        self.log.append("save")
        self.domain = "shutoff"

    def restore(self, _path: Path, _change: object) -> None:
        self.log.append("restore")
        self.domain = "paused"

    def read_saved_name(self, _path: Path) -> str:
        return "ktrdr-one"

    def define(self, _xml: str) -> None: ...

    def resume(self, _name: str) -> None:
        assert not self.paths.saved.exists(), "the machine runs while a state older than its disk is still there"
        self.log.append("run")
        self.domain = "running"


@pytest.fixture(autouse=True)
def enough_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspension, "require_capacity", lambda *_: None)
    monkeypatch.setattr(suspension, "take_secrets", lambda machine, _notify: machine.take_secrets())
    monkeypatch.setattr("ktrdr_vm.instance.resources.saved_state.sync", lambda _: None)


def suspend(machine: Machine) -> None:
    suspension.suspend(machine)  # type: ignore[arg-type]


def resume(machine: Machine) -> None:
    suspension.resume(machine, read_secret=lambda _: b"")  # type: ignore[arg-type]


def test_there_and_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "awake", "running", saved=False)
    suspend(machine)
    assert machine.log == ["-secrets", "save", "-tap", "-guard", "-firewall"]
    assert (machine.require_journal().state, machine.require_journal().kept) == ("suspended", True)
    suspend(machine)
    machine.log.clear()
    resume(machine)
    assert machine.log == ["+firewall", "+guard", "+tap", "restore", "run", "date", "+secrets"]
    assert machine.require_journal().state == "awake" and not machine.paths.saved.exists()


def test_a_guest_that_keeps_a_secret_runs_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "awake", "running", saved=False)
    machine.keeps_secret = True
    with pytest.raises(ProvisionError, match="runs on"):
        suspend(machine)
    assert machine.log == [] and machine.domain == "running"
    resume(machine)
    assert "restore" not in machine.log and machine.log[-1] == "+secrets"
    assert machine.require_journal().state == "awake"


@pytest.mark.parametrize(
    ("state", "domain", "saved", "expected"),
    [
        # Cut off before the machine was saved; after it; after the host ended as well.
        ("suspending", "running", False, ["-secrets", "save", "-tap", "-guard", "-firewall"]),
        ("suspending", "shutoff", True, ["-tap", "-guard", "-firewall"]),
        ("suspending", None, True, ["-tap", "-guard", "-firewall"]),
    ],
)
def test_a_suspend_that_was_cut_off_is_taken_up(tmp_path: Path, state: str, domain: str | None, saved: bool, expected: list[str]) -> None:
    machine = Machine(tmp_path, state, domain, saved=saved)
    suspend(machine)
    assert machine.log == expected and machine.require_journal().state == "suspended"


@pytest.mark.parametrize(
    ("domain", "saved", "expected"),
    [
        (None, True, ["+firewall", "+guard", "+tap", "restore", "run", "date", "+secrets"]),
        # Restored, and not yet running; running, with the state removed.
        ("paused", True, ["+firewall", "+guard", "+tap", "run", "date", "+secrets"]),
        ("running", False, ["+firewall", "+guard", "+tap", "date", "+secrets"]),
    ],
)
def test_a_resume_that_was_cut_off_is_taken_up(tmp_path: Path, domain: str | None, saved: bool, expected: list[str]) -> None:
    machine = Machine(tmp_path, "resuming", domain, saved=saved)
    resume(machine)
    assert machine.log == expected and machine.require_journal().state == "awake"


def test_what_cannot_be_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    for number, (state, domain, saved, act) in enumerate(
        [("awake", "shutoff", False, suspend), ("suspending", None, False, suspend), ("suspended", None, False, resume)]
    ):
        machine = Machine(tmp_path / str(number), state, domain, saved=saved)
        with pytest.raises((UsageError, KtrdrError)):
            act(machine)
        assert machine.log == [] and machine.require_journal().state == state


def test_one_that_stands_still_goes_on_behind_verified_rules_and_one_that_ended_does_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "paused", "awake", "paused", saved=False)
    resume(machine)
    assert machine.log == ["closed", "run"]
    for number, state in enumerate(("shutoff", None)):
        machine = Machine(tmp_path / f"ended{number}", "awake", state, saved=False)
        with pytest.raises(UsageError, match="its machine has ended"):
            resume(machine)
        assert machine.log == []
