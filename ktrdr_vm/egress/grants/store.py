"""The valid grants on disk: a restarted guard takes over those that have not ended, and no others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.grant import MAX_SECONDS, Grant, parse_grant
from ktrdr_vm.errors import HostError
from ktrdr_vm.host.clock import boottime, read_boot_id
from ktrdr_vm.host.durable import write_durably

_UNKNOWN, _MOST = 10**9, 10**14


class GrantBook:
    """`path` is a small JSON file, which is replaced and synced before a change takes effect.

    `revision` counts the changes, expiries included, also across restarts of the guard. `on_change` is called after
    each.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = boottime, boot_id: str | None = None) -> None:
        self._path = path
        self._clock = clock
        self._boot_id = read_boot_id() if boot_id is None else boot_id
        self.revision = 0
        self._missed: list[Grant] = []
        self.on_change: Callable[[], None] = lambda: None
        self._grants = {grant.id: grant for grant in self._read() if grant.ends > clock()}

    def _read(self) -> list[Grant]:
        try:
            data = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            data = None  # not readable: no grant is taken over
        found = []
        now = self._clock()
        rows = data["grants"] if isinstance(data, dict) and isinstance(data.get("grants"), list) else []
        count = data.get("revision", 0) if isinstance(data, dict) else None
        # The count of a damaged file is unknown: continue with a number that no change has had.
        self.revision = count if type(count) is int and 0 <= count < _MOST else _UNKNOWN + int(now * 1000)
        # Times of another boot cannot be compared. The grants from before it have ended: the instance was suspended, or
        # the host was shut down.
        same_boot = isinstance(data, dict) and data.get("boot_id") == self._boot_id
        for row in rows:
            try:
                ends = float(row["ends"])
                grant = Grant(**{**vars(parse_grant({**row, "seconds": 1}, 0)), "ends": ends})
            except (ValueError, KeyError, TypeError):
                continue
            if same_boot and now < ends <= now + MAX_SECONDS:
                found.append(grant)
            else:
                self._missed.append(grant)
        # Each grant that is not taken over has ended since.
        self.revision += len(rows) - len(found)
        return found

    def _save(self, grants: dict[str, Grant], revision: int) -> None:
        rows: list[dict[str, Any]] = [grant.to_json() | {"ends": grant.ends} for grant in grants.values()]
        write_durably(
            self._path, (json.dumps({"boot_id": self._boot_id, "revision": revision, "grants": rows}) + "\n").encode()
        )

    @property
    def standing(self) -> tuple[Grant, ...]:
        """The grants that have not ended; the latest expiry first."""
        return tuple(sorted(self._grants.values(), key=lambda grant: -grant.ends))

    @property
    def next_end(self) -> float:
        """The earliest expiry, on the clock; infinity if there is no grant."""
        return min((grant.ends for grant in self._grants.values()), default=float("inf"))

    def remaining(self, grant: Grant) -> float:
        return max(0.0, grant.ends - self._clock())

    def add(self, grant: Grant) -> None:
        """Store a grant. HostError if it cannot be written; in that case it does not apply."""
        changed = {**self._grants, grant.id: grant}
        self._save(changed, self.revision + 1)
        self._grants = changed
        self._count(1)

    def remove(self, grant_id: str) -> Grant | None:
        """End a grant, even if that cannot be written. In that case HostError, because a restarted guard would take it
        over again."""
        grant = self._grants.pop(grant_id, None)
        if grant is not None:
            self._count(1)
            self._save(self._grants, self.revision)
        return grant

    def take_missed(self) -> list[Grant]:
        """Remove and return the grants that ended while no guard ran."""
        missed, self._missed = self._missed, []
        if missed:
            self._forget_ended()
        return missed

    def take_ended(self) -> list[Grant]:
        """Remove and return the expired grants."""
        now = self._clock()
        ended = [grant for grant in self._grants.values() if grant.ends <= now]
        for grant in ended:
            del self._grants[grant.id]
        if ended:
            self._count(len(ended))
            self._forget_ended()
        return ended

    def _forget_ended(self) -> None:
        # If it cannot be written, a restarted guard only reports their end once more: the file contains their expiry.
        with contextlib.suppress(HostError):
            self._save(self._grants, self.revision)

    def _count(self, changes: int) -> None:
        self.revision += changes
        self.on_change()
