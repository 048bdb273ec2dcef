"""A rate and a burst: how often one instance may ask for something."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Bucket:
    """`rate` a second, and `burst` at once. Threads may share it."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock()
        self._lock = threading.Lock()

    def take(self, amount: float = 1) -> float:
        """0, or the seconds after which it may be asked for again; then nothing was taken."""
        with self._lock:
            now = self._clock()
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
            if self._level < amount:
                return (amount - self._level) / self._rate
            self._level -= amount
            return 0.0

    def spend(self, amount: float) -> None:
        """Take it whether it is there or not; what is owed is waited for by who comes next."""
        with self._lock:
            self._level -= amount
