"""A preparation that failed says which task failed and why, whatever ran before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.gates.templating import Templar
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.identity import Identity
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.templates import preparation
from tests.fakes.guest import FakeGuest


def test_the_task_that_failed_is_named_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    before = "".join(f"    - {{name: number {number} that passed, command: 'true'}}\n" for number in range(40))
    text = f"- hosts: all\n  tasks:\n{before}    - {{name: the layers, shell: make layers}}\n"
    guest = FakeGuest(lambda ran: GuestResult(2, b"", b"no such target\n") if ran.line == "make layers" else None)
    monkeypatch.setattr(preparation, "personalize", lambda *_: None)
    monkeypatch.setattr(preparation, "copy_in", lambda *_: None)
    monkeypatch.setattr(preparation, "GateContext", lambda **more: _with_renderer(more))
    monkeypatch.setattr(preparation, "place_playbook", lambda *_: SimpleNamespace(parent=None))
    facts = SimpleNamespace(accelerator="kvm", image=SimpleNamespace(user="lab"))
    profile = build_profile({"version": 1, "name": "p", "image": "i"})
    loaded: Any = SimpleNamespace(
        plan=SimpleNamespace(profile=profile, identity=Identity("one"), facts=facts), connect=lambda **_: guest
    )
    repository: Any = SimpleNamespace(root=None, place=None)
    with pytest.raises(ProvisionError) as caught:
        preparation._work(loaded, repository, parse_playbook(text, "prepare.yaml"), "", print)
    assert caught.value.message == (
        "the project could not be prepared: the layers: non-zero return code 2: no such target"
    )


def _with_renderer(more: dict[str, Any]) -> Any:
    from ktrdr_vm.gates.context import GateContext

    return GateContext(**more | {"roots": (), "renderer": Templar()})
