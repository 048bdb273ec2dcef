"""An interrupt at any moment leaves a process in the network namespace in which it began."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import pytest
from laboratory.lab import Lab

from ktrdr_vm.host import netns

NAME = "ktrdr-lab-interrupted"
HERE = "/proc/thread-self/ns/net"
# Seconds. Long enough for thousands of interrupts; one in a few hundred hit where the old code lost its way back.
LIMIT = 6.0


def test_no_interrupt_leaves_the_caller_in_the_namespace(lab: Lab) -> None:
    home = os.readlink(HERE)
    netns.create(NAME)
    before = signal.getsignal(signal.SIGALRM)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    interrupts = calls = 0
    inside = []
    try:
        signal.signal(signal.SIGALRM, interrupt)
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            calls += 1
            try:
                # Between nothing and longer than one call takes.
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + calls * 7 % 400))
                inside.append(netns.run_inside(NAME, lambda: os.readlink(HERE)))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
            assert os.readlink(HERE) == home, f"after {interrupts} interrupts of {calls} calls"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        netns.remove(NAME)
    print(f"{calls} calls, {interrupts} interrupts")
    assert interrupts > 100 and home not in inside


def test_what_is_called_there_raises_to_the_caller(lab: Lab) -> None:
    netns.create(NAME)
    try:
        with pytest.raises(ZeroDivisionError):
            netns.run_inside(NAME, lambda: 1 // 0)
        assert netns.run_inside("", lambda: os.readlink(HERE)) == os.readlink(HERE)
    finally:
        netns.remove(NAME)
