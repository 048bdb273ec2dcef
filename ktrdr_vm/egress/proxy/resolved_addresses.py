"""Which addresses the resolver gave for which names, told to the proxy: where a guest goes by its own answer nobody
asks again.

For anything else the proxy asks by itself, as if nothing had been told, so forgetting is always safe. What is told
lives as long as the answer, and ends at once when a grant begins or ends, since another rule may then be what judged
the address.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Literal

from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.plan.guard_interface import GIVEN

# What a guest can make the proxy hold. Beyond it the proxy asks.
MOST = 1024
LONGEST = 3600
# Seconds in which a proxy that did not answer is told nothing: whoever asks the resolver would wait for it.
PAUSE = 10.0
# The name comes from the process that reads the guest's bytes, and goes into a command.
_PLAIN = re.compile(r"[a-z0-9_.-]{1,253}")


class Given:
    """`clock` is monotonic, in seconds."""

    def __init__(self, proxy: ProxyControl, clock: Callable[[], float] = time.monotonic) -> None:
        self._proxy = proxy
        self._clock = clock
        self._ends: dict[str, float] = {}
        self._pause_ends = 0.0

    def proxy_starts(self) -> None:
        """It begins with an empty list."""
        self._ends.clear()
        self._pause_ends = 0.0
        self._proxy.write_maps({}, [GIVEN])

    def learn(self, name: str, addresses: Iterable[str], ttl: int) -> None:
        """`addresses` have been judged; `ttl` is in seconds. A proxy that does not answer asks by itself."""
        if not _PLAIN.fullmatch(name) or self._clock() < self._pause_ends:
            return
        ends = self._clock() + min(max(ttl, 1), LONGEST)
        fresh = []
        for key in (f"{name}@{address}" for address in addresses):
            if key not in self._ends:
                if len(self._ends) >= MOST:
                    break
                fresh.append(key)
            self._ends[key] = ends
        self._change("add", fresh)

    def poll(self) -> None:
        """Take back what has ended; what the proxy does not hear now it hears at the next look."""
        now = self._clock()
        ended = [key for key, end in self._ends.items() if end <= now]
        if now >= self._pause_ends and self._change("del", ended):
            for key in ended:
                del self._ends[key]

    def forget(self) -> None:
        """Take back everything. KtrdrError when the proxy does not answer."""
        self._proxy.clear_list(GIVEN)
        self._ends.clear()

    def _change(self, verb: Literal["add", "del"], keys: list[str]) -> bool:
        try:
            self._proxy.change_list(verb, GIVEN, keys)
        except KtrdrError:
            self._pause_ends = self._clock() + PAUSE
            return False
        return True
