"""A snapshot takes the secrets of approvals as well, and gives them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ktrdr_vm.approvals import apply
from ktrdr_vm.cli.suspend import snapshot
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Answer
from ktrdr_vm.host.clock import boottime, read_boot_id
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance import instance as instance_module
from ktrdr_vm.instance import snapshot as module
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.policy.owner_policy import OwnerPolicy


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]) -> list[str]:
    """What is done to an instance whose owner has approved the secret `token`, in its order."""
    log: list[str] = []

    def copy(_: LoadedInstance, target: Path) -> None:
        target.touch()
        log.append("the disk is copied")

    home = Home(tmp_path)
    home.create()
    write_instance(home, "one")
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setenv("KTRDR_TOKEN", "value")
    monkeypatch.setattr(Libvirt, "find", lambda *_: None)
    monkeypatch.setattr(instance_module, "require_root", lambda: None)
    monkeypatch.setattr("ktrdr_vm.policy.load.read_policy", OwnerPolicy)
    monkeypatch.setattr(module, "remove_secrets", lambda *_: log.append("all secrets are removed"))
    monkeypatch.setattr(module, "copy_disk", copy)
    monkeypatch.setattr(LoadedInstance, "complete", lambda *_, **__: log.append("the profile's are delivered"))
    monkeypatch.setattr(apply, "deliver_secret", lambda _, entry: log.append(f"{entry.name} is delivered"))
    store = Instance(home, parse_instance_id("one"), Libvirt()).load().escalations
    texts = dict.fromkeys(("blocked", "why", "recommendation", "decision", "evidence"), "x")
    wanted: dict[str, Any] = {"kind": "secret", "options": ["a"], "request": {"name": "token"}, "seconds": 600}
    asked, _ = store.submit(parse_packet(wanted | texts))
    ends = (read_boot_id(), boottime() + 600)
    store.answer(asked.id, "approved", Answer("owner", "x", "t", {"name": "token"}, 600, ends, {"env": "KTRDR_TOKEN"}))
    return log


def take() -> Result:
    return CliRunner().invoke(snapshot, ["one", "first"])


def test_a_secret_of_an_approval_is_delivered_again(done: list[str]) -> None:
    taken = take()
    assert taken.exit_code == 0, taken.output
    assert done == [
        "all secrets are removed",
        "the disk is copied",
        "the profile's are delivered",
        "token is delivered",
    ]


def test_so_it_is_when_the_disk_cannot_be_copied(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "copy_disk", fail)
    assert take().exit_code != 0
    assert done[-2:] == ["the profile's are delivered", "token is delivered"]


def test_one_that_cannot_be_read_is_said_before_any_is_removed(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KTRDR_TOKEN")
    failed = take()
    assert failed.exit_code != 0 and "KTRDR_TOKEN" in str(failed.exception)
    assert done == []
