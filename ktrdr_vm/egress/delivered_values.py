"""Values that were delivered to the guest, kept in the guard's memory so that they can be masked.

They are never read back from the guest, which may overwrite its copy. A run and the command that approves a secret are
different processes. The run polls the guard at short intervals, and a value is delivered to the guest only when every
run has it.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

# Bytes of one value, which is also the limit for the source of a secret; and values of one instance, those of the
# profile and approved ones.
MAX_BYTES = 64 * 1024
MAX_VALUES = 250
# Seconds without a poll after which a run counts as ended.
LEASE = 3.0


class DeliveredValues:
    """Append-only, because an expired value may still be printed. A guard has no values when it starts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._values: list[tuple[str, str]] = []
        self._readers: dict[str, tuple[int, float]] = {}
        """Run to the number of values that it has, and the time of its last poll."""

    @property
    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {"value_add": self._add, "value_list": self._list, "value_unread": self._count_unread}

    def _add(self, request: dict[str, Any]) -> dict[str, Any]:
        """ValueError if the value is not valid, or if there are MAX_VALUES already."""
        name, encoded = str(request["name"]), request["value"]
        if not isinstance(encoded, str) or not 0 < len(base64.b64decode(encoded, validate=True)) <= MAX_BYTES:
            raise ValueError(f"a value has 1 to {MAX_BYTES} bytes")
        if (name, encoded) not in self._values:
            if len(self._values) >= MAX_VALUES:
                raise ValueError(f"{MAX_VALUES} values were delivered to this instance; create a new instance")
            self._values.append((name, encoded))
        return {"ok": True}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        """The values after the first `have`. A `reader` is a run that continues to poll."""
        reader, have = str(request.get("reader", "")), int(request["have"])
        if reader:
            self._readers[reader] = (have, self._clock())
        return {"values": [list(one) for one in self._values[max(0, have) :]], "count": len(self._values)}

    def _count_unread(self, _request: dict[str, Any]) -> dict[str, Any]:
        """The number of runs that still poll and do not have all values."""
        now = self._clock()
        self._readers = {name: entry for name, entry in self._readers.items() if now - entry[1] < LEASE}
        return {"unread": sum(have < len(self._values) for have, _ in self._readers.values())}
