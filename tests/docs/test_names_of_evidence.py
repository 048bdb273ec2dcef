"""The page about a run names every event and every rule that the program writes, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ktrdr_vm.host.paths import PROJECT

PACKAGE = PROJECT / "ktrdr_vm"
PAGE = (PROJECT / "docs/report.md").read_text(encoding="utf-8")


def find_first_cells(after: str) -> set[str]:
    """The names in the first cells of the table that follows this text."""
    table = PAGE.split(after, 1)[1].split("| --- |", 1)[1].split("\n\n", 1)[0]
    return {name for row in table.splitlines()[1:] for name in re.findall(r"`([a-z_0-9-]+)`", row.split("|")[1])}


def find_calls(folder: Path) -> Iterator[ast.Call]:
    for path in folder.rglob("*.py"):
        yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def find_texts(node: ast.expr) -> Iterator[str]:
    """The texts of an argument, also of both branches of a condition."""
    for one in (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def test_every_event_is_named() -> None:
    written: set[str] = set()
    for call in (one for room in ("run", "gates", "evidence") for one in find_calls(PACKAGE / room)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if name in ("event", "tell") and call.args:
            written.update(find_texts(call.args[0]))
        elif name == "on_event" and isinstance(call.args[0], ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else "" for key in call.args[0].keys]
            if "event" in keys:
                written.update(find_texts(call.args[0].values[keys.index("event")]))
    assert {"run_started", "phase_finished", "task_started", "task_retried", "laid_beneath", "not_fetched"} <= written
    assert find_first_cells("## events.jsonl") == written


def test_every_rule_is_named() -> None:
    egress = PACKAGE / "egress"
    written = {
        text
        for call in find_calls(egress)
        for word in call.keywords
        if word.arg == "rule"
        for text in find_texts(word.value)
    }
    for name, pattern in (
        ("nftables_host.py", r"counter name ([a-z_0-9]+)"),
        ("nftables_namespace.py", r"counter name ([a-z_0-9]+)"),
        ("telemetry.py", r"counter name ([a-z_0-9]+)"),
        ("haproxy.py", r"set-var\(txn\.verdict\) str\(([a-z-]+)\)"),
    ):
        written |= set(re.findall(pattern, (PACKAGE / "plan" / name).read_text()))
    assert {"no-hello", "spoofed", "reserved", "space"} <= written
    # Of queries that are counted, of elements of sets, and of a rotation, which have no such text.
    written |= {"rate", "destination", "rotation"}
    # Of what is allowed.
    written -= {"allow", "observe"}
    assert find_first_cells("`rule` of a denial:") == written
