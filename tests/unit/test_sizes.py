"""No function of the package is longer than 80 lines or has more than 8 parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ktrdr_vm"
MOST_LINES, MOST_PARAMETERS = 80, 8


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
    assert {name: lines for name, lines, _ in measure() if lines > MOST_LINES} == {}, "cut it by section"


def test_no_function_has_more_parameters() -> None:
    assert {name: count for name, _, count in measure() if count > MOST_PARAMETERS} == {}, "give them as one object"
