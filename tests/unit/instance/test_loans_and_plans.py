"""What is not of the plan: a loan stays, what an earlier plan had goes; and what a running machine was not made for
needs a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.approvals.apply import check_sources
from ktrdr_vm.errors import UsageError
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Answer, EscalationStore
from ktrdr_vm.host.clock import boottime, read_boot_id
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance import loaded
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.resources.base import Target
from ktrdr_vm.instance.resources.mount import Mount
from ktrdr_vm.plan.changes import find_changes
from ktrdr_vm.plan.facts import Facts, HotplugReserve, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import ImageRef, Profile

FACTS = Facts("tcg", "/bin/qemu", "q35", "/home", ImageFacts("image", "0" * 64, "/image"))
PLAN = Plan(Profile(name="p", image=ImageRef(recipe="image")), FACTS, Identity("one"))


def test_a_mount_of_an_earlier_plan_goes_and_a_loan_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]
) -> None:
    one = Instance(Home(tmp_path), Identity("one"), None)  # type: ignore[arg-type]
    one.paths.mounts.mkdir(parents=True)
    target = Target(one.identity, one.paths, None)  # type: ignore[arg-type]
    mounts = [Mount(target, None, mark, None) for mark in ("0", "e1")]
    for mount in mounts:
        Path(mount.name).mkdir()
    write_instance(one.home, "one", resources={"mount:0": "present"})
    monkeypatch.setattr(loaded, "make_resources", lambda *_: tuple(mounts))
    one.load().complete(read_secret=lambda _: b"", mount_roots=())
    assert [mount.exists() for mount in mounts] == [False, True]
    assert one.require_journal().resources == {}


@pytest.mark.parametrize("lending", [HotplugReserve(mounts=True), HotplugReserve(vcpus=4, memory=4096)])
def test_room_for_loans_is_made_when_a_machine_starts(lending: HotplugReserve) -> None:
    after = replace(PLAN, facts=replace(FACTS, lending=lending))
    assert [(change.part, change.how) for change in find_changes(PLAN, after)] == [("hot-plug", "restart")]
    assert find_changes(after, after) == ()


def test_a_granted_secret_that_cannot_be_read_is_told_before_the_machine_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EscalationStore(tmp_path, "one")
    words: dict[str, Any] = dict.fromkeys(("blocked", "why", "recommendation", "decision", "evidence"), "x")
    asked, _ = store.submit(parse_packet({"kind": "secret", "options": ["a"], "request": {"name": "token"}, **words}))
    ends = (read_boot_id(), boottime() + 600)
    store.answer(asked.id, "approved", Answer("owner", "x", "t", {"name": "token"}, 600, ends, {"env": "KTRDR_X"}))
    instance: Any = SimpleNamespace(escalations=store)
    monkeypatch.delenv("KTRDR_X", raising=False)
    with pytest.raises(UsageError, match="KTRDR_X"):
        check_sources(instance)
    monkeypatch.setenv("KTRDR_X", "value")
    check_sources(instance)
