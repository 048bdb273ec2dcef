"""Addresses that the resolver returned to the guest, listed in the proxy: it need not resolve a name again to allow a
connection to one of them.

For all other addresses the proxy queries the resolver itself, so entries can be removed at any time. An entry expires
with the answer. All entries are removed when a grant begins or ends, because then another rule may be the one that
allows an address.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Literal

from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.plan.guard_interface import GIVEN

# Maximum number of entries that a guest can cause. For further addresses the proxy queries the resolver.
MOST = 1024
LONGEST = 3600
# Seconds in which a proxy that did not answer gets no commands: queries of the guest would have to wait for it.
PAUSE = 10.0
# The name comes from the process that reads the guest's bytes, and is inserted into a command.
_PLAIN = re.compile(r"[a-z0-9_.-]{1,253}")


class Given:
    """The list of addresses by name in the proxy. `clock` is monotonic, in seconds."""

    def __init__(self, proxy: ProxyControl, clock: Callable[[], float] = time.monotonic) -> None:
        self._proxy = proxy
        self._clock = clock
        self._ends: dict[str, float] = {}
        self._pause_ends = 0.0

    def proxy_starts(self) -> None:
        """Empty the list, for a proxy that is about to start."""
        self._ends.clear()
        self._pause_ends = 0.0
        self._proxy.write_maps({}, [GIVEN])

    def learn(self, name: str, addresses: Iterable[str], ttl: int) -> None:
        """Add addresses that were checked; `ttl` is in seconds. A proxy that does not answer resolves the name
        itself."""
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
        """Remove the expired entries. If the proxy does not answer, they are removed at a later poll."""
        now = self._clock()
        ended = [key for key, end in self._ends.items() if end <= now]
        if now >= self._pause_ends and self._change("del", ended):
            for key in ended:
                del self._ends[key]

    def forget(self) -> None:
        """Remove all entries. KtrdrError if the proxy does not answer."""
        self._proxy.clear_list(GIVEN)
        self._ends.clear()

    def _change(self, verb: Literal["add", "del"], keys: list[str]) -> bool:
        try:
            self._proxy.change_list(verb, GIVEN, keys)
        except KtrdrError:
            self._pause_ends = self._clock() + PAUSE
            return False
        return True
