"""A step that takes long says what it waits for, and stops saying it when it ends."""

from __future__ import annotations

import threading

import pytest

from ktrdr_vm.host.waiting import announce_wait


def test_a_long_step_says_what_it_waits_for_and_its_limit() -> None:
    told, twice, before = list[str](), threading.Event(), threading.active_count()

    def note(text: str) -> None:
        told.append(text)
        if len(told) == 2:
            twice.set()

    with announce_wait(note, "waiting for SSH", 600, every=0.01):
        assert twice.wait(10)
    count = len(told)
    assert told[0].startswith("waiting for SSH: ") and told[0].endswith("so far, at most 600 s")
    assert threading.active_count() == before and len(told) == count


def test_a_short_one_says_nothing_and_an_error_passes() -> None:
    told = list[str]()
    with pytest.raises(ValueError, match="x"), announce_wait(told.append, "waiting", 1, every=60):
        raise ValueError("x")
    assert told == []
