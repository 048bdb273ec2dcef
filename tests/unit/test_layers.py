"""The house: a module imports from lower floors only, what is pure stays pure, and each outer thing has one importer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ktrdr_vm.host.paths import PROJECT

PACKAGE = PROJECT / "ktrdr_vm"
FLOORS = {
    "cli": 13,
    "run": 11,
    "outcome": 10.5,
    "stage": 10,
    "harvest": 9.5,
    "verification": 10,
    "first_lines": 9,
    "recorder": 9,
    "tracing": 9,
    "reproduce": 9,
    "overview": 9,
    "converge": 8,
    "lost": 8,
    "leftovers": 8,
    "sampler": 9,
    "stop": 9,
    "answers": 9,
    "bundle": 9,
    "template": 8,
    "suspension": 8,
    "delivered": 7.5,
    "openssh": 8,
    "lending": 8,
    "snapshot": 8,
    "prepare": 9,
    "instance": 7,
    "teardown": 7,
    "allocation": 6,
    "listener": 8,
    "gates": 7,
    "gather": 8,
    "references": 7.5,
    "trusted": 7.5,
    "evidence": 7,
    "junit_files": 7,
    "discovery": 7,
    "workload": 7,
    "doctor": 9,
    "confinement": 8.5,
    "gate_run": 9,
    "evidence_reader": 8.5,
    "metrics": 9,
    "api": 12,
    "resources": 6,
    "report": 6,
    "egress": 5,
    "escalation": 4.5,
    "telemetry": 4.5,
    "images": 5,
    "guest": 5,
    "host": 4,
    "plan": 3,
    "profile": 2,
    "errors": 1,
}
# Rooms of one floor do not know each other; these stand above or beside on purpose.
_BESIDE = {
    ("workload", "evidence"),  # both are a part of run, each small enough to read
    ("discovery", "instance"),  # it lists what instance makes
    ("instance", "teardown"),  # the end of it, small enough to read
}
# What gates and workspaces need of a guest, without how it is reached: an interface, open to everybody from its own floor up.
_OPEN = "ktrdr_vm.guest.protocol"
# Modules that touch the world outside of Python. `plan` and `profile` are the same bytes on every host.
_IMPURE = {"os", "subprocess", "socket", "time", "random", "secrets", "uuid4", "shutil", "tempfile", "datetime", "threading", "asyncio"}
_SOLE_IMPORTERS = {"libvirt": {"host/libvirt.py"}, "paramiko": {"guest/ssh.py", "guest/keys.py"}, "subprocess": {"host/process.py"}}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its floor"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.startswith("ktrdr_vm.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        # The package names what programs use, and imports it when it is asked for.
        assert {name.split(".")[1] for name in ours(path)} <= {"api"}
        return
    assert here in FLOORS, f"{here} has no floor; give it one in the design and here"
    wrong = []
    for name in ours(path):
        there = name.split(".")[1]
        allowed = (
            there == here
            or FLOORS[there] < FLOORS[here]
            or (here, there) in _BESIDE
            or (name.startswith(_OPEN) and FLOORS[here] >= FLOORS["guest"])
            or (name == "ktrdr_vm.guest" and any(other.startswith(_OPEN) for other in ours(path)))
        )
        if not allowed:
            wrong.append(f"{here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    assert wrong == []


def test_no_circle() -> None:
    edges = {here: {name.split(".")[1] for path in MODULES if room(path) == here for name in ours(path)} - {here} for here in FLOORS}

    def reaches(start: str, goal: str, seen: frozenset[str] = frozenset()) -> bool:
        return any(there == goal or (there not in seen and reaches(there, goal, seen | {there})) for there in edges.get(start, ()))

    assert [here for here in FLOORS if reaches(here, here)] == []


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in ("plan", "profile")], ids=lambda path: path.name)
def test_plan_and_profile_touch_no_disk_clock_network_or_chance(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} & _IMPURE == set()
    calls = {
        node.func.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "open" not in calls and "print" not in calls


@pytest.mark.parametrize("module", sorted(_SOLE_IMPORTERS))
def test_each_outer_thing_has_one_importer(module: str) -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name == module or name.startswith(f"{module}.") for name in imports(path)) and starts_processes(path, module)
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
        for node in ast.walk(ast.parse(path.read_text()))
    )


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) != "cli"], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_cli_prints_or_exits(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            raise AssertionError(f"{path}:{node.lineno} prints")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "sys.exit":
            raise AssertionError(f"{path}:{node.lineno} exits")
    assert "click" not in imports(path)


_RUN_DOCUMENTS = {"report.json", "report.html", "junit.xml", "events.jsonl", "plan.json", "bundle.tar.zst"}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name not in ("runs.py", "run_removal.py")], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_one_module_opens_what_lies_beneath_runs(path: Path) -> None:
    """What was handed to a person is opened by `host/runs.py` alone. A run's own writer has it before that; the rest may show its name."""
    here, tree = str(path.relative_to(PACKAGE)), ast.parse(path.read_text())
    shown = {
        id(inner) for call in ast.walk(tree) if isinstance(call, ast.Call) and ast.unparse(call.func) == "str" for inner in ast.walk(call)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "runs" and here != "host/paths.py":
            assert ast.unparse(node.value) in ("ktrdr_vm.host", "self.home"), f"{here}:{node.lineno} goes beneath runs/"
        joined = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)
        if joined and node.right.value in _RUN_DOCUMENTS and here != "evidence.py":  # type: ignore[attr-defined]
            made_apart = ast.unparse(node.left) in ("made", "directory", "run.path")  # type: ignore[attr-defined]
            assert id(node) in shown or made_apart, f"{here}:{node.lineno} opens a document of a run by its path"
