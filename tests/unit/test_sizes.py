"""No function of the package is longer than 80 lines or has more than 8 parameters. The exceptions are listed, and the
lists may only shrink."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ktrdr_vm"
MOST_LINES, MOST_PARAMETERS = 80, 8

# Lines and parameters as they are today: one that grows fails, and so does one that has become small enough to be taken
# off.
LONG: dict[str, int] = {}
WIDE = {
    "gates/modules/guest_side/files.py set_state": 10,
    "gates/modules/guest_side/files.py place": 10,
    "gates/modules/guest_side/network.py uri": 13,
    "gates/modules/guest_side/network.py wait_for": 10,
}


def measure() -> Iterator[tuple[str, int, int]]:
    """Each function with its lines and its parameters, without `self`; of a command, whose parameters are its options,
    none."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            decorators = " ".join(map(ast.unparse, node.decorator_list))
            is_command = path.parent.name == "cli" and any(
                word in decorators for word in ("command", "option", "group")
            )
            yield (
                f"{path.relative_to(PACKAGE)} {node.name}",
                (node.end_lineno or 0) - node.lineno + 1,
                0 if is_command else parameters,
            )


def test_no_function_is_longer() -> None:
    found = {name: lines for name, lines, _ in measure() if lines > MOST_LINES}
    assert {name: lines for name, lines in found.items() if lines > LONG.get(name, 0)} == {}, "cut it by section"
    assert sorted(LONG.keys() - found.keys()) == [], "these are short now: take them off the list"


def test_no_function_has_more_parameters() -> None:
    found = {name: count for name, _, count in measure() if count > MOST_PARAMETERS}
    assert {name: count for name, count in found.items() if count > WIDE.get(name, 0)} == {}, "give them as one object"
    assert sorted(WIDE.keys() - found.keys()) == [], "these are narrow now: take them off the list"
