"""What a run leaves: results.json for programs, a table and a picture in docs/performance.md for people."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.place import MEMORY, ROOT, VCPUS
from bench.rows import ROWS, Samples, reaches

PAGE = ROOT / "docs" / "performance.md"


def write_results(samples: Samples, machine: str, *, kvm: bool = False) -> list[dict[str, Any]]:
    """Every row whose parts were measured. What was measured and is no row by itself stands in the page as seconds.

    With `kvm` into the second table of the page and results-kvm.json.
    """
    name = "-kvm" if kvm else ""
    results = [found for row in ROWS if (found := samples.evaluate(row)) is not None]
    (ROOT / f"bench/results{name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (PAGE.parent / f"performance{name}.svg").write_text(render_picture(results))
    text = PAGE.read_text()
    begin, end = f"<!-- bench{name}: begin -->", f"<!-- bench{name}: end -->"
    assert begin in text and end in text, f"{PAGE} has lost its marks"
    head, rest = text.split(begin, 1)
    _, tail = rest.split(end, 1)
    picture = f"![Each measure against its aim](performance{name}.svg)"
    body = "\n".join([machine, "", render_table(results), "", picture, "", render_raw(samples)])
    PAGE.write_text(f"{head}{begin}\n{body}\n{end}{tail}")
    return results


def render_table(results: list[dict[str, Any]]) -> str:
    units = {row.measure.replace("\\|", "|"): row.unit for row in ROWS}
    lines = ["| measure | value | aim | reached | n | spread |", "| --- | --- | --- | --- | --- | --- |"]
    for one in results:
        unit = f" {units[one['measure']]}" if units[one["measure"]] else ""
        sign = "≤" if one["better"] == "lower" else "≥"
        aim = f"{sign} {one['aim']:g}{unit}" if one["aim"] is not None else ""
        word = {None: "", True: "yes", False: "no"}[reaches(one)]
        measure = one["measure"].replace("|", "\\|")
        lines.append(f"| {measure} | {one['value']:.3g}{unit} | {aim} | {word} | {one['n']} | {one['spread']:.2g} |")
    return "\n".join(lines)


def render_raw(samples: Samples) -> str:
    """The medians that the ratios are made of."""
    said = ", ".join(f"{name} {samples.median(name):.3g}" for name in samples.names())
    return f"Medians in seconds; `connect`, `filter` and `setup` in milliseconds, memory in MB: {said}."


def render_picture(results: list[dict[str, Any]]) -> str:
    """A bar for each measure that has an aim: how far from it, on a scale of factors. Left of the line is reached."""
    shown = [one for one in results if one["aim"]]
    left, width, line = 430, 360, 22
    height = 60 + line * len(shown)
    root = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {left + width + 90} {height}",
        role="img",
        attrib={"font-family": "sans-serif"},
    )
    ElementTree.SubElement(root, "title").text = "Each measure against its aim"
    reached = sum(bool(reaches(one)) for one in shown)
    ElementTree.SubElement(
        root, "desc"
    ).text = f"{reached} of {len(shown)} aims are reached; bars left of the line reach theirs."
    ElementTree.SubElement(root, "rect", width="100%", height="100%", fill="#ffffff")
    middle = left + width / 2

    def place(factor: float) -> float:
        """From a tenth to ten times the aim."""
        return middle + max(-1.0, min(1.0, math.log10(max(factor, 1e-6)))) * width / 2

    for factor, word in ((0.1, "÷ 10"), (1.0, "aim"), (10.0, "× 10")):
        x = f"{place(factor):.1f}"
        ElementTree.SubElement(
            root, "line", x1=x, x2=x, y1="34", y2=str(height - 14), stroke="#888888" if factor == 1 else "#dddddd"
        )
        mark = ElementTree.SubElement(
            root, "text", x=x, y="26", fill="#333333", attrib={"text-anchor": "middle", "font-size": "12"}
        )
        mark.text = word
    for number, one in enumerate(shown):
        y = 42 + number * line
        factor = max(one["value"], 1e-6) / one["aim"]
        factor = factor if one["better"] == "lower" else 1 / factor
        start, end = sorted((middle, place(factor)))
        colour = "#2b7a4b" if reaches(one) else "#b5542f"
        label = ElementTree.SubElement(
            root,
            "text",
            x=str(left - 8),
            y=str(y + 12),
            fill="#222222",
            attrib={"text-anchor": "end", "font-size": "12"},
        )
        label.text = one["measure"].replace("`", "")
        ElementTree.SubElement(
            root, "rect", x=f"{start:.1f}", y=str(y), width=f"{max(end - start, 1.5):.1f}", height="15", fill=colour
        )
        value = ElementTree.SubElement(
            root, "text", x=str(left + width + 10), y=str(y + 12), fill="#222222", attrib={"font-size": "12"}
        )
        value.text = f"{one['value']:.3g}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def describe_machine(accelerator: str, rounds: int, what: str) -> str:
    """What it was measured on, as a sentence."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    qemu = _ask("qemu-system-x86_64", "--version").split(" version ")[1].split()[0]
    boots = "KVM" if accelerator == "kvm" else "software emulation (KVM does not work there)"
    return (
        f"Measured on {_ask('date', '-u', '+%Y-%m-%d')} by `{what}`, {rounds} rounds: {os.cpu_count()} ×"
        f" {processor[1] if processor else platform.machine()}, {int(memory[1]) >> 20 if memory else 0} GiB of memory,"
        f" {system[1] if system else platform.system()}, kernel {platform.release()}, QEMU {qemu}, libvirt"
        f" {_ask('virsh', '--version')}, {boots}; load at the start {os.getloadavg()[0]:.1f}. Guests have {VCPUS} vCPUs"
        f" and {MEMORY >> 10} GiB."
    )


def _ask(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
