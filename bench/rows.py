"""What is measured, what it is compared with, and what is aimed at. A row is a ratio of two samples of the same round,
or one sample."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """`top` ÷ `bottom`, or `top` alone in its unit. Samples of one round stand beside each other."""

    measure: str
    top: str
    bottom: str = ""
    aim: float | None = None
    better: Literal["lower", "higher"] = "lower"
    unit: str = ""
    minus: str = ""
    """A sample that is taken off `top`, for what is not the program's."""

    @property
    def samples_needed(self) -> set[str]:
        return {name for name in (self.top, self.bottom, self.minus) if name}


ROWS = (
    Row("cold apply → SSH ÷ raw QEMU → SSH", "cold.ssh", "raw.ssh", 1.05),
    Row("cold apply → SSH and Docker ÷ raw QEMU → the same", "cold.ready", "raw.ready", 1.05),
    Row("fork → SSH and Docker ÷ raw QEMU → the same", "fork.ready", "raw.ready", 0.10),
    Row("fork → SSH ÷ raw QEMU → SSH", "fork.ssh", "raw.ssh", 0.08),
    Row(
        "fork → an authenticated command, minus the SSH handshake",
        "fork.ssh",
        "",
        0.8,
        "lower",
        "s",
        minus="fork.handshake",
    ),
    Row("fork: command → the guest is resumed", "fork.resumed", "", 0.45, "lower", "s"),
    Row("3 forks at once ÷ 1", "forks3.ready", "fork.ready", 1.8),
    Row("10 forks at once ÷ 1", "forks10.ready", "fork.ready", 6.0),
    Row("memory of the second idle fork ÷ the first (PSS)", "memory.second", "memory.first", 0.35),
    Row("destroy → residue proof done", "destroy", "", 1.0, "lower", "s"),
    Row("template build ÷ cold boot", "template", "cold.ready", 1.3),
    Row("prepared project → ready ÷ the same unprepared", "prepared.ready", "unprepared.ready", 0.3),
    Row("suspend → saved", "suspend", "", None, "lower", "s"),
    Row("resume → SSH ÷ cold apply → SSH", "resume.ssh", "cold.ssh"),
    Row("`--help` ÷ `python -c pass`", "command.help", "command.pass", 4.0),
    Row("`plan` ÷ `python -c pass`", "command.plan", "command.pass", 10.0),
    Row("`plan` with three presets ÷ `python -c pass`", "command.presets", "command.pass", 9.0),
    Row("`validate` ÷ `python -c pass`", "command.validate", "command.pass"),
    Row("`ktrdr-vm proxy` until its first byte", "fork.proxy", "", 0.08, "lower", "s"),
    Row("gate of 23 small tasks ÷ `ansible-playbook` (pipelining, kept connection)", "gate.ours", "gate.ansible", 0.08),
    Row("`list` ÷ `python -c pass`", "command.list", "command.pass"),
    Row("copy-in ÷ `tar \\| ssh`, speed, many small files", "tar.small", "copy.small", 0.8, "higher"),
    Row("copy-in ÷ `tar \\| ssh`, speed, one large file", "tar.large", "copy.large", 0.9, "higher"),
    Row(
        "egress: speed of a 500 MB download ÷ the same guest unfiltered",
        "vmplain.download",
        "vmguard.download",
        0.95,
        "higher",
    ),
    Row(
        "egress: speed of 200 small requests ÷ the same guest unfiltered",
        "vmplain.requests",
        "vmguard.requests",
        0.95,
        "higher",
    ),
    Row(
        "egress: new connection, more than the same guest unfiltered",
        "vmguard.connect",
        "",
        1.0,
        "lower",
        "ms",
        minus="vmplain.connect",
    ),
    Row("egress: speed of a 500 MB download ÷ unfiltered, no VM", "plain.download", "guard.download", None, "higher"),
    Row("egress: speed of 200 small requests ÷ unfiltered, no VM", "plain.requests", "guard.requests", None, "higher"),
    Row(
        "egress: new connection and lookup, more than unfiltered, no VM",
        "guard.connect",
        "",
        None,
        "lower",
        "ms",
        minus="plain.connect",
    ),
    Row(
        "egress: a streamed event, more than unfiltered, no VM",
        "guard.streamed",
        "",
        2.0,
        "lower",
        "ms",
        minus="plain.streamed",
    ),
    Row(
        "without root: speed of a 500 MB download through pasta ÷ dialled",
        "dialled.download",
        "pasta.download",
        None,
        "higher",
    ),
    Row(
        "without root: speed of 200 small requests through pasta ÷ dialled",
        "dialled.requests",
        "pasta.requests",
        None,
        "higher",
    ),
    Row(
        "without root: new connection through pasta, more than dialled",
        "pasta.connect",
        "",
        None,
        "lower",
        "ms",
        minus="dialled.connect",
    ),
    Row("egress: set-up of filter and guard", "guard.setup", "", 50.0, "lower", "ms"),
    Row("egress: set-up of the filter alone", "guard.filter", "", 50.0, "lower", "ms"),
    Row("egress: memory of the guard and its children (PSS)", "guard.memory", "", 60.0, "lower", "MB"),
    *(
        Row(
            f"{what} → SSH ÷ {peer} → SSH{', stock image' if stock else ''}",
            f"{ours}.ssh",
            f"{peer}{'.stock' if stock else ''}.ssh",
            aim,
        )
        for stock in (False, True)
        for peer in ("virt-install", "debvm-run", "virt-lightning", "vagrant-libvirt")
        for what, ours, aim in (("cold apply", "cold", 0.7), ("fork", "fork", 0.07))
    ),
    Row("cold apply → Docker ÷ virt-install → Docker, stock image", "cold.docker", "virt-install.stock.docker", 0.40),
)


class Samples:
    """What was measured, by name and round."""

    def __init__(self) -> None:
        self._rounds: dict[str, dict[int, float]] = defaultdict(dict)

    def add(self, number: int, found: dict[str, float]) -> None:
        for name, value in found.items():
            self._rounds[name][number] = value

    def median(self, name: str) -> float | None:
        values = list(self._rounds[name].values()) if name in self._rounds else []
        return statistics.median(values) if values else None

    def names(self) -> list[str]:
        return sorted(self._rounds)

    def evaluate(self, row: Row) -> dict[str, Any] | None:
        """A row of results.json, or None when one of its parts was not measured.

        Value is the median, spread the distance of the quartiles; of less than four samples that of the outermost.
        """
        if any(name not in self._rounds for name in row.samples_needed):
            return None
        found = []
        # As many values as there are samples of the part that was measured least often.
        measured = [list(self._rounds[name]) for name in (row.top, row.bottom, row.minus) if name]
        fewest = min(measured, key=len)
        for number in sorted(fewest):
            value = self._near(row.top, number)
            if row.minus:
                value -= self._near(row.minus, number)
            found.append(value / self._near(row.bottom, number) if row.bottom else value)
        return {
            "measure": row.measure.replace("\\|", "|"),
            "value": round(statistics.median(found), 4),
            "aim": row.aim,
            "better": row.better,
            "n": len(found),
            "spread": round(_spread(found), 4),
            "samples": [round(value, 4) for value in found],
        }

    def _near(self, name: str, number: int) -> float:
        """The sample of the same round; of something that is not measured in every round, the median."""
        rounds = self._rounds[name]
        return rounds.get(number) or statistics.median(rounds.values())


def _spread(values: list[float]) -> float:
    if len(values) < 4:
        return max(values) - min(values)
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def reaches(result: dict[str, Any]) -> bool | None:
    if result["aim"] is None:
        return None
    return bool(result["value"] <= result["aim"] if result["better"] == "lower" else result["value"] >= result["aim"])
