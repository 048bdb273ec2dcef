"""The rooms of the package: what each may import, what is pure, and which outer thing has which importer.

`python tests/unit/test_layers.py --write` renders the table of docs/architecture.md from MAY_IMPORT and the rooms'
docstrings.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "ktrdr_vm"

# Complete: what is not listed is forbidden, and what is listed is used.
_ROWS = {
    "errors": "",
    "users": "errors",
    "identity": "errors",
    "profile": "errors",
    "host": "errors identity users",
    "plan": "errors identity profile",
    "policy": "errors profile users",
    "world": "errors host identity policy users",
    "report": "errors profile",
    "escalation": "errors host policy profile",
    "evidence": "errors host policy report",
    "guest": "errors host identity plan profile",
    "images": "errors host profile",
    "egress": "errors escalation host plan policy profile report world",
    "gates": "errors guest host profile report",
    "init": "errors host profile",
    "inputs": "errors evidence gates guest host identity images plan policy profile",
    "instance": "egress errors escalation guest host identity plan policy profile users",
    "approvals": "errors escalation host identity instance plan policy profile",
    "monitoring": "errors escalation evidence host identity instance policy report users world",
    "templates": "egress errors gates guest host identity images inputs instance plan profile",
    "run": "approvals egress errors escalation evidence gates guest host images inputs instance plan profile report templates",
    "places": "errors evidence guest host identity images inputs instance plan policy profile report run templates users",
    "api": "errors escalation evidence gates guest host identity inputs instance plan report run world",
    "cli": (
        "api approvals egress errors escalation evidence guest host identity images init inputs instance monitoring places plan policy profile"
        " report run templates world"
    ),
}
MAY_IMPORT = {room: set(words.split()) for room, words in _ROWS.items()}
MOST_LAYERS = 10
MOST_ARROWS = 165
# Modules that touch the world outside of Python. These rooms give the same bytes on every host.
_PURE = ("plan", "profile", "identity")
_IMPURE = {
    "os",
    "subprocess",
    "socket",
    "time",
    "random",
    "secrets",
    "uuid4",
    "shutil",
    "tempfile",
    "datetime",
    "threading",
    "asyncio",
}
_SOLE_IMPORTERS = {
    "libvirt": {"host/libvirt_binding.py"},
    "paramiko": {"guest/ssh.py"},
    "subprocess": {"host/process.py"},
}
_NAMED = re.compile(rb"ktrdr_vm((?:\.[a-z_0-9]+)+)")

_RUN_DOCUMENTS = {"report.json", "report.html", "junit.xml", "events.jsonl", "plan.json", "bundle.tar.zst"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if first == "__main__" else first


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import anywhere in a file, also of a module that a string names to be started or
    imported."""
    tree = parse(path)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its room"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            raw = node.value.encode("utf-8", "replace") if isinstance(node.value, str) else node.value
            yield from ((node.lineno, "ktrdr_vm" + found.decode()) for found in _NAMED.findall(raw))


def ours(path: Path) -> list[tuple[int, str]]:
    return [
        (line, name)
        for line, name in imports(path)
        if name.startswith("ktrdr_vm.") and name.split(".")[1] != room(path)
    ]


def arrows() -> dict[tuple[str, str], list[str]]:
    """From room to room, with the places of the imports."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in MODULES:
        if room(path) == "__init__":
            continue
        for line, name in ours(path):
            found.setdefault((room(path), name.split(".")[1]), []).append(f"{path.relative_to(PROJECT)}:{line} {name}")
    return found


def find_floors() -> dict[str, int]:
    """One more than the highest that a room imports. RecursionError for a circle."""

    @functools.cache
    def floor(one: str) -> int:
        return 1 + max((floor(other) for other in MAY_IMPORT[one]), default=0)

    return {one: floor(one) for one in MAY_IMPORT}


def test_no_room_imports_more_than_the_table_says() -> None:
    beyond = {
        f"{here} imports {there}": places
        for (here, there), places in arrows().items()
        if there not in MAY_IMPORT.get(here, set())
    }
    assert beyond == {}, "write it another way, or give the room this entry, here and in the design"


def test_no_entry_of_the_table_is_unused() -> None:
    used = arrows()
    assert [
        (here, there) for here, row in MAY_IMPORT.items() for there in sorted(row) if (here, there) not in used
    ] == []


def test_each_room_has_a_row_and_each_row_a_room() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert rooms == MAY_IMPORT.keys()


def test_few_floors_and_arrows_and_no_circle() -> None:
    assert max(find_floors().values()) <= MOST_LAYERS
    assert sum(map(len, MAY_IMPORT.values())) <= MOST_ARROWS


def test_the_package_itself_names_what_programs_use() -> None:
    assert {name.split(".")[1] for _, name in ours(PACKAGE / "__init__.py")} <= {"api"}


def test_no_command_imports_another() -> None:
    """What two of them need has a file of its own. A command's own parts begin with its name: `mcp_tools` is one of
    `mcp`."""
    shared = {"options", "output", "progress", "world", "main", "elsewhere", "connect"}
    wrong = [
        f"{path.name}:{line} {name}"
        for path in (PACKAGE / "cli").glob("*.py")
        if path.stem not in ("main", "entry")
        for line, name in imports(path)
        if name.startswith("ktrdr_vm.cli.")
        and name.split(".")[2] not in shared
        and name.split(".")[2].partition("_")[0] != path.stem.partition("_")[0]
    ]
    assert wrong == []


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in _PURE], ids=lambda path: path.name)
def test_pure_rooms_touch_no_disk_clock_network_or_chance(path: Path) -> None:
    assert {name.split(".")[0] for _, name in imports(path)} & _IMPURE == set()
    calls = {
        node.func.id for node in ast.walk(parse(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "open" not in calls and "print" not in calls


@pytest.mark.parametrize("module", sorted(_SOLE_IMPORTERS))
def test_each_outer_thing_has_one_importer(module: str) -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name == module or name.startswith(f"{module}.") for _, name in imports(path))
        and starts_processes(path, module)
    }
    assert found <= _SOLE_IMPORTERS[module]


def starts_processes(path: Path, module: str) -> bool:
    """Of subprocess, names such as PIPE and Popen as a type may be used anywhere; starting one may not."""
    if module != "subprocess":
        return True
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "subprocess"
        for node in ast.walk(parse(path))
    )


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) != "cli"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_only_cli_prints_or_exits(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            raise AssertionError(f"{path}:{node.lineno} prints")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "sys.exit":
            raise AssertionError(f"{path}:{node.lineno} exits")
    assert "click" not in {name for _, name in imports(path)}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.name not in ("runs.py", "run_removal.py")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_one_module_opens_what_lies_beneath_runs(path: Path) -> None:
    """What was handed to a person is opened by `host/runs.py` alone. A run's own writer has it before that; the rest
    may show its name."""
    here, tree = str(path.relative_to(PACKAGE)), parse(path)
    shown = {
        id(inner)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "str"
        for inner in ast.walk(call)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "runs" and here != "host/paths.py":
            assert ast.unparse(node.value) in ("ktrdr_vm.host", "self.home"), f"{here}:{node.lineno} goes beneath runs/"
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)):
            continue
        if node.right.value in _RUN_DOCUMENTS and here != "evidence/run_directory.py":
            made_apart = ast.unparse(node.left) in ("made", "directory", "run.path")
            assert id(node) in shown or made_apart, f"{here}:{node.lineno} opens a document of a run by its path"


def test_unit_tests_lie_in_the_room_of_their_subject() -> None:
    """Beside the rooms: fuzzing, which reaches all of them, and the benchmarks."""
    rooms = {
        path.relative_to(PROJECT / "tests" / "unit").parts[0]
        for path in (PROJECT / "tests" / "unit").glob("*/**/test_*.py")
    }
    assert rooms - MAY_IMPORT.keys() - {"fuzz", "bench"} == set()


# -- the table of the documentation ------------------------------------------------------------------------------------

DOCUMENT = PROJECT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- layers: python tests/unit/test_layers.py --write -->\n", "<!-- end of layers -->\n"


def describe(one: str) -> str:
    """The first sentence of the room's docstring."""
    path = PACKAGE / f"{one}.py"
    text = ast.get_docstring(parse(path if path.exists() else PACKAGE / one / "__init__.py")) or ""
    return " ".join(text.split("\n\n")[0].split())


def render_table() -> str:
    floors = find_floors()
    rows = ["| layer | package | purpose | imports |", "| --- | --- | --- | --- |"]
    for one in sorted(MAY_IMPORT, key=lambda name: (floors[name], name)):
        shown = f"`{one}.py`" if (PACKAGE / f"{one}.py").exists() else f"`{one}/`"
        rows.append(f"| {floors[one]} | {shown} | {describe(one)} | {' '.join(sorted(MAY_IMPORT[one])) or '-'} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_the_documentation_is_this_one() -> None:
    text = DOCUMENT.read_text()
    shown = text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]
    assert shown == render_table(), "python tests/unit/test_layers.py --write"


@pytest.mark.parametrize("one", sorted(MAY_IMPORT))
def test_each_room_says_what_it_is(one: str) -> None:
    said = describe(one)
    assert said.endswith(".") and not said.endswith("?") and len(said) > 20


@pytest.mark.parametrize("one", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_what_a_room_calls_public_is_there(one: str) -> None:
    text = ast.get_docstring(parse(PACKAGE / one / "__init__.py")) or ""
    for module, name in re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", text):
        tree = parse(PACKAGE / one / f"{module}.py")
        names = {
            node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in names, f"{one}/{module}.py has no {name}"


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(text[: text.index(_BEGIN) + len(_BEGIN)] + render_table() + text[text.index(_END) :])
