"""The watch over the two tables of an instance: counts dropped packets, and repairs changed rules."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.nft import Table, keep_rules, list_table, load_ruleset


@dataclass(frozen=True)
class Drop:
    """Packets that were dropped since the last poll."""

    address: str
    protocol: str
    port: int
    rule: str
    count: int


@dataclass
class DropCounts:
    """The last values of the counters of a table, whose handle is another one each time that it is loaded."""

    _seen: dict[tuple[str, str, int], int] = field(default_factory=dict)
    _handle: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"handle": self._handle, "seen": [[*key, packets] for key, packets in self._seen.items()]}

    def take_up(self, kept: dict[str, Any]) -> None:
        """Continue with what `to_json` returned."""
        self._handle = int(kept["handle"])
        self._seen = {(str(one), str(two), int(three)): int(packets) for one, two, three, packets in kept["seen"]}

    def read(self, entries: Table) -> list[Drop]:
        """What was counted since the last call. `entries` is the listing of the table."""
        handle = next((int(entry["table"].get("handle", 0)) for entry in entries if "table" in entry), 0)
        if handle != self._handle:
            self._seen, self._handle = {}, handle
        drops = []
        for entry in entries:
            if "counter" in entry:
                counter = entry["counter"]
                drops += self._news(("", counter["name"], 0), counter["packets"], counter["name"])
            elif entry.get("set", {}).get("name") in ("denied", "denied_protocols"):
                for element in entry["set"].get("elem", []):
                    parts, packets = element["elem"]["val"]["concat"], element["elem"]["counter"]["packets"]
                    key = (str(parts[0]), str(parts[1]), int(parts[2]) if len(parts) > 2 else 0)
                    drops += self._news(key, packets, "destination")
        return drops

    def _news(self, key: tuple[str, str, int], packets: int, rule: str) -> list[Drop]:
        new = packets - self._seen.get(key, 0)
        self._seen[key] = packets
        if new <= 0:
            return []
        return [Drop(key[0], key[1] if rule == "destination" else "", key[2], rule, new)]


@dataclass(frozen=True)
class _Place:
    """A table: its network namespace, empty for that of the host, the file from which it is loaded, and the last values
    of its counters."""

    namespace: str
    ruleset: Path
    counts: DropCounts = field(default_factory=DropCounts)


class TableWatch:
    """Reads the counters of both tables of an instance, and loads a table again if it differs from what was loaded.

    The table in `namespace` filters the packets of the guest, and only root can enter that namespace. The other table
    is on the host, where a reload of another program's rules may remove it. It is repaired without a line in the
    ledger, because no packet of the guest passes it.
    """

    def __init__(
        self, directory: Path, table: str, namespace: str, expected: Path, sets: AllowSets, ledger: Ledger
    ) -> None:
        self._places = (_Place("", directory / "ruleset-host.nft"), _Place(namespace, directory / "ruleset.nft"))
        self._table = table
        self._counts = directory / "drop.counts"
        self._loaded = expected
        self._take_up_counts()
        self._sets = sets
        self._ledger = ledger
        self._expected = _read_expected(expected, namespace)

    def poll(self) -> None:
        """Write what was dropped since the last poll, after both tables were checked and, if necessary, repaired."""
        try:
            # Both are listed before one is counted: what is counted is written.
            listed = [(place, self._read(place)) for place in self._places]
            drops = [drop for place, entries in listed for drop in place.counts.read(entries)]
        except (KtrdrError, ValueError, KeyError) as error:
            self._ledger.write("guard", "note", rule="table", message=f"the table is not as it must be: {error}"[:300])
            return
        for drop in drops:
            self._ledger.write(
                "drop",
                "deny",
                name=self._sets.owners.get(drop.address, ""),
                address=drop.address,
                port=drop.port,
                protocol=drop.protocol,
                rule=drop.rule,
                count=drop.count,
            )
        self._ledger.flush()
        if drops:
            self._keep_counts()

    def _take_up_counts(self) -> None:
        """The counters outlive the guard: what an earlier one has written into the ledger is not written again."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._counts.read_bytes())
            if kept["loaded"] == self._loaded.stat().st_mtime_ns:
                for place in self._places:
                    place.counts.take_up(kept["counts"][place.namespace])

    def _keep_counts(self) -> None:
        # Not synced: the tables do not outlive a reboot. Handles begin at one in each namespace, whose tables are
        # recorded when they are loaded.
        with contextlib.suppress(OSError):
            counts = {place.namespace: place.counts.to_json() for place in self._places}
            fresh = self._counts.with_name(f".{self._counts.name}.new")
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps({"loaded": self._loaded.stat().st_mtime_ns, "counts": counts}))
            fresh.rename(self._counts)

    def _read(self, place: _Place) -> Table:
        """The listing of a table, which is loaded again first if it is missing or changed."""
        entries = list_table(self._table, place.namespace)
        expected = self._expected.get(place.namespace)
        if entries is not None and (expected is None or keep_rules(entries) == expected):
            return entries
        load_ruleset(place.ruleset, place.namespace)
        self._sets.refill()
        if place.namespace:
            self._ledger.write(
                "guard", "note", rule="table", message="the rules in the namespace were changed; they are back"
            )
        return list_table(self._table, place.namespace) or []


def _read_expected(path: Path, namespace: str) -> dict[str, Table]:
    """By namespace, the listings of the tables as they were when they were loaded; empty if these were not recorded."""
    try:
        found = json.loads(path.read_bytes())
        return {"": found["host"], namespace: found["table"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
