"""The watch over the instance's table: what packets were dropped, and that no other program changes the rules."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.domain_control import Machine
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import KtrdrError, ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.host.nft import Table, keep_rules, list_table, load_ruleset, read_table
from ktrdr_vm.host.privileges import die_with


@dataclass(frozen=True)
class Drop:
    """Packets that were dropped since the last look."""

    address: str
    protocol: str
    port: int
    rule: str
    count: int


@dataclass
class DropCounts:
    """What the table's counters said last."""

    _seen: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def clear(self) -> None:
        self._seen.clear()

    def read(self, entries: Table) -> list[Drop]:
        """What was counted since the last call. `entries` is the table's listing."""
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


class TableWatch:
    """Compares the table with what it was when it was loaded, and puts it back. `machine` stands still meanwhile."""

    def __init__(self, directory: Path, table: str, expected: Path, machine: Machine, sets: AllowSets, ledger: Ledger) -> None:
        self._directory = directory
        self._table = table
        self._machine = machine
        self._sets = sets
        self._ledger = ledger
        self._expected = _read_expected(expected) or read_table(table)
        self._counts = DropCounts()

    def start_monitor(self) -> subprocess.Popen[bytes]:
        """nft's own events: what somebody does to the tables is known within milliseconds, not at the next look."""
        parent = os.getpid()
        pipe = subprocess.PIPE
        monitor = process.start(["nft", "monitor"], stdout=pipe, stderr=pipe, in_child=lambda: die_with(parent), new_session=False)
        assert monitor.stdout is not None
        os.set_blocking(monitor.stdout.fileno(), False)
        return monitor

    def read_events(self, monitor: subprocess.Popen[bytes]) -> None:
        assert monitor.stdout is not None
        try:
            events = os.read(monitor.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return
        # Elements come and go by themselves; a table, chain, rule or set of ours does not.
        name = self._table.encode()
        if any(name in line and b" element " not in line for line in events.split(b"\n")):
            self.check()

    def look(self) -> None:
        """Write what was dropped since the last look. The events come first; this also sees a change that they missed."""
        try:
            entries = list_table(self._table)
            if entries is None or keep_rules(entries) != self._expected:
                self.check()
                return
            drops = self._counts.read(entries)
        except (KtrdrError, ValueError, KeyError) as error:
            self._ledger.write("guard", "note", message=f"the table cannot be read: {error}"[:300])
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

    def check(self) -> None:
        """Another program changed nftables. If it touched our rules, the guest stands still until they are back."""
        began = time.monotonic()
        try:
            if read_table(self._table) == self._expected:
                return
            paused = self._try("pause the guest", self._pause)
            load_ruleset(self._directory / "ruleset.nft")
            self._counts.clear()
            self._sets.refill()
            if paused:
                self._try("resume the guest", self._machine.resume)
            milliseconds = round((time.monotonic() - began) * 1000)
            message = (
                f"another program changed the firewall; the guest {'was paused' if paused else 'could not be paused'}, the rules are back"
            )
            self._ledger.write("guard", "note", rule="table", message=message, ms=milliseconds)
        except KtrdrError as error:
            # The routing rule still forwards nothing; the next look tries again.
            self._ledger.write("guard", "note", rule="table", message=f"the firewall is not as it must be: {error}"[:300])

    def _pause(self) -> None:
        state = self._machine.find_state()
        if state != "running":
            raise ProvisionError(
                f"it is {state or 'not there'}", where=self._machine.domain, hint="a guest that does not run sends nothing"
            )
        self._machine.suspend()

    def _try(self, what: str, act: Callable[[], None]) -> bool:
        try:
            act()
        except KtrdrError as error:
            self._ledger.write("guard", "note", rule="table", message=f"could not {what}: {error.message}"[:300])
            return False
        return True


def _read_expected(path: Path) -> Table | None:
    """What the firewall was read back as when it was loaded, or None when nobody wrote that down."""
    try:
        found = json.loads(path.read_bytes())
        table: Table = found["table"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return table
