"""The grants that hold, on disk: a guard that was started again takes up those that have not ended, and never one that
has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.grant import MAX_SECONDS, Grant, parse_grant
from ktrdr_vm.host.clock import boottime, read_boot_id
from ktrdr_vm.host.durable import write_durably

_UNKNOWN, _MOST = 10**9, 10**14


class GrantBook:
    """`path` is a small JSON file, replaced whole and synced before a change counts.

    `revision` counts the changes, expiries included, also across restarts of the guard. `on_change` is called after
    each.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = boottime, boot_id: str | None = None) -> None:
        self._path = path
        self._clock = clock
        self._boot_id = read_boot_id() if boot_id is None else boot_id
        self.revision = 0
        self.on_change: Callable[[], None] = lambda: None
        self._grants = {grant.id: grant for grant in self._read() if grant.ends > clock()}

    def _read(self) -> list[Grant]:
        try:
            data = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            data = None  # nothing can be said for it, so nothing is open
        found = []
        now = self._clock()
        rows = data["grants"] if isinstance(data, dict) and isinstance(data.get("grants"), list) else []
        count = data.get("revision", 0) if isinstance(data, dict) else None
        # Of a damaged file the count is unknown: it goes on from a number that no change has had.
        self.revision = count if type(count) is int and 0 <= count < _MOST else _UNKNOWN + int(now * 1000)
        # Moments of another boot mean nothing here; what was suspended or shut down meanwhile has ended.
        if isinstance(data, dict) and data.get("boot_id") == self._boot_id:
            for row in rows:
                try:
                    ends = float(row["ends"])
                    if now < ends <= now + MAX_SECONDS:
                        found.append(Grant(**{**vars(parse_grant({**row, "seconds": 1}, 0)), "ends": ends}))
                except (ValueError, KeyError, TypeError):
                    continue
        # Each that is not taken up has ended since.
        self.revision += len(rows) - len(found)
        return found

    def _save(self, grants: dict[str, Grant], revision: int) -> None:
        rows: list[dict[str, Any]] = [grant.to_json() | {"ends": grant.ends} for grant in grants.values()]
        write_durably(
            self._path, (json.dumps({"boot_id": self._boot_id, "revision": revision, "grants": rows}) + "\n").encode()
        )

    @property
    def standing(self) -> tuple[Grant, ...]:
        """Those that have not been ended; the one that holds longest first."""
        return tuple(sorted(self._grants.values(), key=lambda grant: -grant.ends))

    @property
    def next_end(self) -> float:
        """When the next one ends, on the clock; infinity when there is none."""
        return min((grant.ends for grant in self._grants.values()), default=float("inf"))

    def remaining(self, grant: Grant) -> float:
        return max(0.0, grant.ends - self._clock())

    def add(self, grant: Grant) -> None:
        """Raises HostError when it cannot be written; then it does not hold."""
        changed = {**self._grants, grant.id: grant}
        self._save(changed, self.revision + 1)
        self._grants = changed
        self._count(1)

    def remove(self, grant_id: str) -> Grant | None:
        """It ends even when that cannot be written, and then HostError says so: a restarted guard would take it up
        again."""
        grant = self._grants.pop(grant_id, None)
        if grant is not None:
            self._count(1)
            self._save(self._grants, self.revision)
        return grant

    def take_ended(self) -> list[Grant]:
        """Those whose time is over, taken out. The file needs no change: it says when they ended."""
        now = self._clock()
        ended = [grant for grant in self._grants.values() if grant.ends <= now]
        for grant in ended:
            del self._grants[grant.id]
        if ended:
            self._count(len(ended))
        return ended

    def _count(self, changes: int) -> None:
        self.revision += changes
        self.on_change()
