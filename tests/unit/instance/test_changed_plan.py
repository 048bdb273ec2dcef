"""A plan that changes while its instance lives: what still runs for the earlier one is seen, and replaced in the right
order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress import client
from ktrdr_vm.egress.child_process import listen_unix
from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance import guard_status
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources import firewall as firewall_module
from ktrdr_vm.instance.resources.base import Blueprint, Target
from ktrdr_vm.instance.resources.firewall import Firewall, count_rules_of_text
from ktrdr_vm.instance.resources.guard import Guard
from ktrdr_vm.plan.facts import Facts, ImageFacts, allocate
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile

IDENTITY = parse_instance_id("one")


def make_blueprint(home: Path, *hosts: str) -> Blueprint:
    allow = [{"host": host, "ports": [443]} for host in hosts]
    allow += [{"cidr": "198.51.100.7/32", "ports": [5432 + len(hosts)]}]
    document: dict[str, Any] = {
        "version": 1,
        "name": "n",
        "image": "i",
        "mode": "interactive",
        "egress": {"allow": allow},
    }
    facts = Facts("tcg", "/e", "m", str(home), ImageFacts("i", "d" * 64, "/i"))
    plan = Plan(build_profile(document), facts, IDENTITY, document)
    allocation = allocate(0, genid="g", host_key="k", host_public_key="p", login_public_key="l")
    return Blueprint(plan, allocation, None, None)  # type: ignore[arg-type]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    home = Home(tmp_path)
    home.create()
    home.instance("one").directory.mkdir()
    return Target(IDENTITY, home.instance("one"), None)  # type: ignore[arg-type]


def test_rules_of_an_earlier_plan_are_not_as_planned(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = make_blueprint(target.paths.home, "a.example"), make_blueprint(target.paths.home)
    table = [{"table": {"comment": target.mark}}] + [{"rule": {}}] * count_rules_of_text(
        before.documents["ruleset.nft"]
    )
    outside: list[dict[str, Any]] = [{"rule": {}}] * count_rules_of_text(before.documents["ruleset-host.nft"])
    monkeypatch.setattr(firewall_module, "is_namespace", lambda _: True)
    monkeypatch.setattr(firewall_module, "load_ruleset", lambda *_: None)
    monkeypatch.setattr(firewall_module, "read_table", lambda _table, namespace="": table if namespace else outside)
    monkeypatch.setattr(firewall_module, "read_comment", lambda *_: target.mark)
    Firewall(target, before).create()
    assert Firewall(target, before).verify() == []
    assert Firewall(target, after).verify() == ["the table's rules are those of an earlier plan"]


def test_a_guard_of_an_earlier_plan_is_not_as_planned(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = make_blueprint(target.paths.home, "a.example"), make_blueprint(target.paths.home)
    target.paths.guard.mkdir(parents=True)
    target.paths.guard.chmod(0o711)
    Guard(target, before)._write_files()
    monkeypatch.setattr(guard_status, "is_locked", lambda _: True)
    monkeypatch.setattr(client, "ask_guard", lambda *_, **__: {"resolver": "self", "proxy": "self"})
    assert Guard(target, before).verify() == []
    assert "egress.json" in Guard(target, after).verify()[0]


def test_a_guard_of_an_earlier_plan_ends_before_the_firewall_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]
) -> None:
    done: list[str] = []

    class Fake:
        needs_guest = False
        lane = "isolation"

        def __init__(self, kind: str) -> None:
            self.kind, self.restores_plan = kind, kind == "guard"

        def exists(self) -> bool:
            return True

        def verify(self) -> list[str]:
            return ["earlier"]

        def stop(self) -> None:
            done.append(f"stop {self.kind}")

    monkeypatch.setattr("ktrdr_vm.instance.loaded.make_resources", lambda *_: (Fake("firewall"), Fake("guard")))
    monkeypatch.setattr(LoadedInstance, "ensure", lambda _self, resource, *_: done.append(f"ensure {resource.kind}"))
    home = Home(tmp_path)
    write_instance(home, "one")
    Instance(home, IDENTITY, None).load().create(read_secret=lambda _: b"", mount_roots=())  # type: ignore[arg-type]
    assert done == ["stop guard", "ensure firewall", "ensure guard"]


def test_the_longest_instance_id_has_room_for_its_sockets(tmp_path: Path) -> None:
    """63 characters beneath the default home are 110 bytes, and the kernel takes 107."""
    folder = tmp_path / ("x" * 63) / ("y" * 60)
    folder.mkdir(parents=True)
    listener = listen_unix(folder / "control.sock")
    listener.close()
    with pytest.raises(ProvisionError, match="refused"):
        GuardClient(folder).status()
    assert (folder / "control.sock").is_socket()
