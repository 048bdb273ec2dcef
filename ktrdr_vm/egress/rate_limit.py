"""A token bucket, which limits how often one instance may make a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Bucket:
    """`rate` per second, and `burst` at once. Thread-safe."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock()
        self._lock = threading.Lock()

    def take(self, amount: float = 1) -> float:
        """Take `amount`. Returns 0, or the seconds after which it will be available; in that case nothing was taken."""
        with self._lock:
            now = self._clock()
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
            if self._level < amount:
                return (amount - self._level) / self._rate
            self._level -= amount
            return 0.0

    def spend(self, amount: float) -> None:
        """Take `amount` even if it is not available. Later calls of `take` return a longer wait."""
        with self._lock:
            self._level -= amount
