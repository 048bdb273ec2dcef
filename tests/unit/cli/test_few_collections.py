"""The garbage collector of a command, whose objects nearly all live until its end."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from ktrdr_vm.cli import entry


def test_loading_a_command_collects_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Callable[[], object]] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    before = gc.get_threshold()
    try:
        entry.limit_collections()
        assert gc.get_threshold()[0] >= 10_000 and gc.isenabled()
        for call in at_exit:
            call()
        assert gc.get_freeze_count() > 0, "the last collections of the interpreter have nothing to search"
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
