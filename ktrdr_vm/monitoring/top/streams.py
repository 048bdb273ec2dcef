"""The streams: what is known of each instance of this host, and of each request that was submitted from here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.escalation.store import Escalation
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.escalations import open_store
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.monitoring.overview import Row, list_rows
from ktrdr_vm.monitoring.top.progress import Progress, read_progress
from ktrdr_vm.report.escape import escape_line
from ktrdr_vm.report.summary import format_bytes


@dataclass(frozen=True)
class Stream:
    """One instance, or one request at a place. Ages are seconds, `memory` is bytes; None if unknown."""

    instance_id: str
    state: str
    place: str = ""
    """Empty for this host."""
    request_id: str = ""
    mode: str = ""
    age: float | None = None
    progress: Progress = field(default_factory=Progress)
    gates: str = ""
    cpu: float | None = None
    """Cores in use since the last reading."""
    memory: int | None = None
    denials: int = 0
    asks: tuple[Escalation, ...] = ()
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.place}/{self.request_id or self.instance_id}"

    @property
    def doing(self) -> str:
        """Where it is: the task of a gate, a phase, or its state."""
        now = self.progress
        if now.task:
            return f"{now.gate}: {now.task}"
        return now.phase or now.outcome or self.gates or self.state

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table, in the order of COLUMNS."""
        return (
            self.instance_id,
            self.place or "here",
            self.state,
            self.doing,
            _format_age(self.age),
            f"{self.cpu:.1f}" if self.cpu is not None else "",
            format_bytes(self.memory) if self.memory else "",
            str(self.denials or ""),
            ",".join(one.id for one in self.asks),
        )


COLUMNS = ("INSTANCE", "PLACE", "STATE", "DOING", "AGE", "CPU", "MEMORY", "DENIED", "ASKS")


class Reader:
    """Reads all streams of this host. One reader is used by one thread at a time."""

    def __init__(self, home: Home, libvirt: Libvirt, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._libvirt = libvirt
        self._clock = clock
        # Of the last reading: when, and CPU seconds.
        self._used: dict[str, tuple[float, float]] = {}

    def read(self) -> list[Stream]:
        """The instances, sorted by instance_id."""
        rows = list_rows(self._home, self._libvirt)
        found = [self._make(row) for row in rows]
        self._used = {
            row.found.instance_id: self._used[row.found.instance_id]
            for row in rows
            if row.found.instance_id in self._used
        }
        return found

    def _make(self, row: Row) -> Stream:
        name = row.found.instance_id
        return Stream(
            instance_id=name,
            state=row.found.state,
            mode=row.found.mode,
            age=row.age,
            progress=read_progress(self._home, name, row.found.run_id) if row.found.busy else Progress(),
            gates=escape_line(row.gates, limit=60),
            cpu=self._measure(name, row.cpu_s),
            memory=row.memory,
            denials=row.denials,
            asks=self._list_asks(name) if row.pending else (),
            note=row.found.note,
        )

    def _measure(self, name: str, cpu_s: float | None) -> float | None:
        now, before = self._clock(), self._used.pop(name, None)
        if cpu_s is None:
            return None
        self._used[name] = (now, cpu_s)
        if before is None or now <= before[0] or cpu_s < before[1]:
            return None
        return (cpu_s - before[1]) / (now - before[0])

    def _list_asks(self, name: str) -> tuple[Escalation, ...]:
        try:
            store = open_store(Instance(self._home, parse_instance_id(name), self._libvirt))
            return tuple(one for one in store.list() if one.current == "pending")
        except KtrdrError:
            return ()


def _format_age(age: float | None) -> str:
    """In its largest unit, as it fits into a column."""
    if age is None:
        return ""
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
        if age >= 2 * seconds:
            return f"{age / seconds:.0f}{unit}"
    return f"{age:.0f}s"
