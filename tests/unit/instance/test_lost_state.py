"""What is left of an instance: of one whose state directory was lost, and what nobody can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.instance import instance as instance_module
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.teardown import find_residue


@pytest.mark.parametrize(
    ("mark", "home", "named"),
    [
        ("own", "", "network namespace ktrdr-one"),
        ("", "own", "domain ktrdr-one"),
        ("own", "own", "network namespace ktrdr-one"),
        ("another", "", ""),
        ("", "other", ""),
    ],
)
def test_what_is_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, home: str, named: str
) -> None:
    place = {"own": str(tmp_path), "other": "/elsewhere"}.get(home, "")
    libvirt: Any = SimpleNamespace(find=lambda _: SimpleNamespace(home=place, mode="sandbox") if place else None)
    one = Instance(Home(tmp_path), Identity("one"), libvirt)
    links = {"lo": one.target.mark if mark == "own" else mark} if mark else {}
    monkeypatch.setattr(instance_module, "list_links", lambda _: links)
    if not named:
        one._require_nothing_left()
        return
    with pytest.raises(ProvisionError, match=named) as caught:
        one._require_nothing_left()
    assert "ktrdr-vm destroy one" in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [HostError("libvirtd does not answer", hint="start it"), PermissionError(13, "Permission denied"), ValueError("x")],
)
def test_what_cannot_be_checked_is_left_and_not_gone(error: Exception) -> None:
    class Unknown:
        kind, name, location = "domain", "ktrdr-one", "host"

        def exists(self) -> bool:
            raise error

    [left] = find_residue([Unknown()])  # type: ignore[list-item]
    assert left.startswith("domain ktrdr-one (unknown: ")
