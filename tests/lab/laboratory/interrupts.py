"""Interrupts at every moment of a call."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType


def interrupt_often(act: Callable[[], object], check: Callable[[], object], *, longest: float, seconds: float) -> int:
    """Call `act` again and again for some seconds, raise KeyboardInterrupt in it after up to `longest` seconds each
    time, as Ctrl-C does, and call `check` afterwards. Returns the number of interrupts."""
    interrupts = calls = 0
    # The kernel gives the signal to any thread of the process, so that it may arrive after its timer was ended.
    expected = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if expected:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            calls += 1
            try:
                expected = True
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + calls * 7e-6 % longest)
                act()
                signal.setitimer(signal.ITIMER_REAL, 0)
                expected = False
            except KeyboardInterrupt:
                expected = False
                interrupts += 1
            check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    print(f"{calls} calls, {interrupts} interrupts")
    return interrupts
