"""Which slot a new instance gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance import allocation


def test_a_slot_of_another_state_directory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]
) -> None:
    """Its journals are not known here; its guard is, by the address on which it answers its proxy."""
    home = Home(tmp_path)
    home.create()
    monkeypatch.setattr(allocation, "find_bound", lambda _port: set())
    assert allocation.find_free_slot(home) == 0
    write_instance(home, "one", slot=0)
    assert allocation.find_free_slot(home) == 1
    monkeypatch.setattr(allocation, "find_bound", lambda _port: {"127.213.0.2"})
    assert allocation.find_free_slot(home) == 2
