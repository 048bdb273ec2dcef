"""A state directory that was lost while its instance runs: a new one of the same name is refused with what helps."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance.instance import Instance


@pytest.mark.parametrize(
    ("tap", "home", "named"), [(True, "", "tap kv"), (False, "own", "domain ktrdr-one"), (True, "own", "tap kv"), (False, "other", "")]
)
def test_what_is_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: bool, home: str, named: str) -> None:
    place = {"own": str(tmp_path), "other": "/elsewhere"}.get(home, "")
    libvirt: Any = SimpleNamespace(find=lambda _: SimpleNamespace(home=place, mode="sandbox") if place else None)
    one = Instance(Home(tmp_path), Identity("one"), libvirt)
    there = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: tap if str(path).startswith("/sys/class/net/") else there(path))
    if not named:
        one._require_nothing_left()
        return
    with pytest.raises(ProvisionError, match=named) as caught:
        one._require_nothing_left()
    assert "ktrdr-vm destroy one" in caught.value.hint
