"""The order of going to sleep and of waking, also when it was cut off: what protects stands before the machine runs,
and after it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import GuestError, KtrdrError, ProvisionError, UsageError
from ktrdr_vm.host.journal import Journal, read_journal
from ktrdr_vm.host.libvirt_binding import DomainFacts, DomainState
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance import suspend as suspension
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.base import Target
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.plan.facts import Allocation

ONE = parse_instance_id("one")


PLAN: Any = SimpleNamespace(
    profile=SimpleNamespace(mode="interactive", resources=SimpleNamespace(memory=1)),
    facts=SimpleNamespace(accelerator="tcg"),
)


class Part:
    """A resource that writes down what is done with it."""

    def __init__(self, machine: Machine, kind: str) -> None:
        self.kind = self.key = self.name = kind
        self.isolates, self.needs_guest = kind in ("firewall", "guard", "tap"), kind == "secrets"
        self.planned = True
        self.blueprint = SimpleNamespace(documents={"domain.xml": "<domain/>"})
        self._log = machine.log

    def exists(self) -> bool:
        return False

    def create(self) -> None:
        self._log.append(f"+{self.kind}")

    def verify(self) -> list[str]:
        return []

    def remove(self) -> None:
        self._log.append(f"-{self.kind}")


class Machine(LoadedInstance):
    """One instance, with the libvirt that has it: a domain, a saved state, a network, and a log of what was done in
    which order."""

    def __init__(self, tmp_path: Path, state: str, domain: str | None, *, saved: bool) -> None:
        home = Home(tmp_path)
        target = Target(ONE, home.instance("one"), self)  # type: ignore[arg-type]
        target.paths.directory.mkdir(parents=True)
        journal = Journal(target.paths.journal, "one", mode="interactive", state=state)
        journal.save()
        super().__init__(home, target, journal, PLAN, Allocation(), None)
        self.log: list[str] = []
        self.domain = domain
        self.keeps_secret = False
        if saved:
            self.paths.saved.write_bytes(b"state")

    # as the instance

    def open_resources(self, *_: object) -> tuple[Any, ...]:
        return tuple(Part(self, kind) for kind in ("overlay", "seed", "firewall", "guard", "tap", "domain", "secrets"))

    def require_closed(self) -> None:
        self.log.append("closed")

    def remove_secrets(self) -> list[str]:
        if self.keeps_secret:
            raise GuestError("nobody answers", where="one", hint="look")
        self.log.append("-secrets")
        return ["secrets"]

    def connect(self, **_: object) -> Any:
        def run(words: list[str], **_: object) -> Any:
            self.log.append(words[0])
            return SimpleNamespace(exit_code=0)

        return SimpleNamespace(run=run)

    # as Libvirt

    def find(self, _name: str) -> DomainFacts | None:
        return (
            None
            if self.domain is None
            else DomainFacts("ktrdr-one", "one", str(self.home.root), "interactive", DomainState(self.domain), True)
        )

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
    monkeypatch.setattr(suspension, "move_in", lambda target, _: target.libvirt.log.append("tap moved in"))
    monkeypatch.setattr(suspension, "remove_secrets", lambda machine, _notify: machine.remove_secrets())
    monkeypatch.setattr(suspension, "end_connection", lambda machine: machine.close())
    monkeypatch.setattr("ktrdr_vm.instance.resources.saved_state.sync", lambda _: None)


def suspend(machine: Machine) -> None:
    try:
        suspension.suspend(machine)
    finally:
        assert read_journal(machine.paths.journal) == machine.journal


def resume(machine: Machine) -> None:
    try:
        suspension.resume(machine, read_secret=lambda _: b"")
    finally:
        assert read_journal(machine.paths.journal) == machine.journal


def test_there_and_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "awake", "running", saved=False)
    suspend(machine)
    assert machine.log == ["-secrets", "save", "-tap", "-guard", "-firewall"]
    assert (machine.journal.state, machine.journal.kept) == ("suspended", True)
    suspend(machine)
    machine.log.clear()
    resume(machine)
    assert machine.log == ["+firewall", "+guard", "+tap", "restore", "tap moved in", "run", "date", "+secrets"]
    assert machine.journal.state == "awake" and not machine.paths.saved.exists()
    assert machine.journal.resources == dict.fromkeys(("firewall", "guard", "tap", "secrets"), "present")


def test_a_guest_that_keeps_a_secret_runs_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "awake", "running", saved=False)
    machine.keeps_secret = True
    with pytest.raises(ProvisionError, match="keeps running"):
        suspend(machine)
    assert machine.log == [] and machine.domain == "running"
    resume(machine)
    assert "restore" not in machine.log and machine.log[-1] == "+secrets"
    assert machine.journal.state == "awake"


@pytest.mark.parametrize("keeps", [False, True])
def test_a_mount_goes_after_the_secrets_and_one_that_stays_keeps_the_machine_running(
    tmp_path: Path, keeps: bool
) -> None:
    machine = Machine(tmp_path, "awake", "running", saved=False)

    class Folder(Mount):
        def detach(self, **_: object) -> None:
            if keeps:
                raise GuestError("it is busy", where="one", hint="look")
            machine.log.append("-mount")

    parts = machine.open_resources()
    machine.open_resources = lambda *_: (*parts, Folder(machine.target, None, "0", None))  # type: ignore[method-assign]
    if keeps:
        with pytest.raises(ProvisionError, match="keeps running: it is busy"):
            suspend(machine)
        assert machine.log == ["-secrets"] and machine.domain == "running"
    else:
        suspend(machine)
        assert machine.log[:3] == ["-secrets", "-mount", "save"]


@pytest.mark.parametrize(
    ("state", "domain", "saved", "expected"),
    [
        # Cut off before the machine was saved; after it; after the host ended as well.
        ("suspending", "running", False, ["-secrets", "save", "-tap", "-guard", "-firewall"]),
        ("suspending", "shutoff", True, ["-tap", "-guard", "-firewall"]),
        ("suspending", None, True, ["-tap", "-guard", "-firewall"]),
    ],
)
def test_a_suspend_that_was_cut_off_is_taken_up(
    tmp_path: Path, state: str, domain: str | None, saved: bool, expected: list[str]
) -> None:
    machine = Machine(tmp_path, state, domain, saved=saved)
    suspend(machine)
    assert machine.log == expected and machine.journal.state == "suspended"


@pytest.mark.parametrize(
    ("domain", "saved", "expected"),
    [
        (None, True, ["+firewall", "+guard", "+tap", "restore", "tap moved in", "run", "date", "+secrets"]),
        # Restored, and not yet running; running, with the state removed.
        ("paused", True, ["+firewall", "+guard", "+tap", "tap moved in", "run", "date", "+secrets"]),
        ("running", False, ["+firewall", "+guard", "+tap", "tap moved in", "date", "+secrets"]),
    ],
)
def test_a_resume_that_was_cut_off_is_taken_up(
    tmp_path: Path, domain: str | None, saved: bool, expected: list[str]
) -> None:
    machine = Machine(tmp_path, "resuming", domain, saved=saved)
    resume(machine)
    assert machine.log == expected and machine.journal.state == "awake"


def test_what_cannot_be_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    for number, (state, domain, saved, act) in enumerate(
        [("awake", "shutoff", False, suspend), ("suspending", None, False, suspend), ("suspended", None, False, resume)]
    ):
        machine = Machine(tmp_path / str(number), state, domain, saved=saved)
        with pytest.raises((UsageError, KtrdrError)):
            act(machine)
        assert machine.log == [] and machine.journal.state == state


def test_one_that_stands_still_goes_on_behind_verified_rules_and_one_that_ended_does_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "paused", "awake", "paused", saved=False)
    resume(machine)
    assert machine.log == ["closed", "run"]
    for number, state in enumerate(("shutoff", None)):
        machine = Machine(tmp_path / f"ended{number}", "awake", state, saved=False)
        with pytest.raises(UsageError, match="its VM has ended"):
            resume(machine)
        assert machine.log == []
