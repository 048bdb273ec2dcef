"""What is imported before a command does its work, because a person or OpenSSH waits for it.

Read from the sources: imports of modules and classes, not those inside of functions, unless a start names the function.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# The modules from which a command starts, `module:function` for imports inside of that function as well, and what
# none of them imports at load, directly or by another module of ours.
HEAVY = (
    "asyncio concurrent cryptography dns http libvirt opentelemetry paramiko prometheus_client rich socketserver ssl"
)
STARTS = {
    "the program": (
        "ktrdr_vm.cli.entry ktrdr_vm.cli.main:main",
        f"{HEAVY} cerberus difflib hashlib jinja2 json pathlib subprocess tempfile uuid yaml",
    ),
    "proxy": (
        "ktrdr_vm.cli.entry ktrdr_vm.cli.ssh_proxy ktrdr_vm.errors ktrdr_vm.host.owner",
        f"{HEAVY} cerberus click hashlib jinja2 json pathlib subprocess tempfile typing urllib uuid yaml",
    ),
    "plan": (
        "ktrdr_vm.cli.plan:plan ktrdr_vm.inputs.profile_file",
        f"{HEAVY} cerberus ctypes difflib jinja2 secrets tarfile ktrdr_vm.gates ktrdr_vm.guest.loose_files"
        " ktrdr_vm.guest.ssh ktrdr_vm.host.journal ktrdr_vm.host.rights ktrdr_vm.host.sub_ids ktrdr_vm.images.apt"
        " ktrdr_vm.images.build ktrdr_vm.plan.changes",
    ),
    "the gates of a plan": (
        "ktrdr_vm.gates.load",
        f"{HEAVY} ctypes difflib packaging subprocess tempfile ktrdr_vm.gates.modules.table ktrdr_vm.gates.renderer",
    ),
    "exec": (
        "ktrdr_vm.cli.ssh ktrdr_vm.instance.ssh_config ktrdr_vm.instance.instance",
        f"{HEAVY.replace('concurrent ', '')} jinja2 tarfile ktrdr_vm.world.own",
    ),
    "list": (
        "ktrdr_vm.cli.instances:list_ ktrdr_vm.cli.options",
        f"{HEAVY.replace('libvirt ', '')} cerberus jinja2 yaml ktrdr_vm.instance.resources ktrdr_vm.plan"
        " ktrdr_vm.policy ktrdr_vm.profile.model",
    ),
    "the image of an instance": (
        "ktrdr_vm.images.ensure",
        f"{HEAVY} urllib.request ktrdr_vm.images.build ktrdr_vm.images.fetch",
    ),
    "the guard": (
        "ktrdr_vm.egress.guard",
        f"{HEAVY} cerberus difflib hashlib jinja2 random secrets tempfile uuid yaml",
    ),
}


def find_file(module: str) -> Path | None:
    path = PROJECT.joinpath(*module.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def find_statements(nodes: list[ast.stmt], function: str) -> Iterator[ast.stmt]:
    """Those that run at load, and those in the body of the function."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == function:
                yield from (one for one in ast.walk(node) if isinstance(one, ast.stmt))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from find_statements(node.orelse, function)
        else:
            yield node
            for name in ("body", "orelse", "finalbody"):
                yield from find_statements(getattr(node, name, []), function)


def find_imports(module: str, function: str = "") -> Iterator[str]:
    path = find_file(module)
    if path is None:
        return
    for node in find_statements(parse(path).body, function):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_loaded(starts: str) -> set[str]:
    """Every name that the starts import, by any number of modules of ours."""
    waiting = starts.split()
    loaded: set[str] = set()
    while waiting:
        module, _, function = waiting.pop().partition(":")
        parts = module.split(".")
        names = {".".join(parts[: number + 1]) for number in range(len(parts))}
        if names <= loaded and not function:
            continue
        loaded |= names
        for name in names:
            waiting += find_imports(name, function if name == module else "")
    return loaded


@pytest.mark.parametrize("start", STARTS)
def test_a_start_imports_nothing_of_this(start: str) -> None:
    starts, unwanted = STARTS[start]
    loaded = find_loaded(starts)
    assert len(loaded) > 10 and not loaded.intersection(unwanted.split())


def test_an_import_is_found_through_others() -> None:
    loaded = find_loaded("ktrdr_vm.guest.ssh")
    assert {"paramiko", "ktrdr_vm.host.netns", "ktrdr_vm.guest"} <= loaded
    assert "pathlib" not in find_loaded("ktrdr_vm.host.netns"), "only for types, and in functions"
    assert "pathlib" in find_loaded("ktrdr_vm.host.netns:_find_path")
