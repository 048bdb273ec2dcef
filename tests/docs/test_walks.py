"""What the documentation calls `room/file.py:name` is a function, a class or a method of that file."""

from __future__ import annotations

import ast
import re

import pytest

from ktrdr_vm.host.paths import PROJECT

PAGES = [PROJECT / "docs" / "architecture.md", PROJECT / "CONTRIBUTING.md"]
NAMED = sorted(
    {found for page in PAGES for found in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py):([A-Za-z_.]+)`", page.read_text())}
)
FILES = sorted(
    {
        found
        for page in PAGES
        for found in re.findall(r"`((?:ktrdr_vm|tests|docs)/[a-z_/]+\.(?:py|md))`", page.read_text())
    }
)
WALKS = {"A run", "A packet", "An escalation", "A secret"}


def list_names(file: str) -> set[str]:
    names = set()
    for node in ast.parse((PROJECT / "ktrdr_vm" / file).read_text()).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names |= {
                f"{node.name}.{one.name}" for one in inner if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return names


@pytest.mark.parametrize(("file", "name"), NAMED, ids=str)
def test_what_is_named_is_there(file: str, name: str) -> None:
    assert name in list_names(file)


@pytest.mark.parametrize("file", FILES)
def test_each_file_that_is_named_is_there(file: str) -> None:
    assert (PROJECT / file).is_file()


def test_the_four_walks_name_functions() -> None:
    parts = re.split(r"^### ", PAGES[0].read_text(), flags=re.MULTILINE)
    walks = {part.split("\n", 1)[0]: len(re.findall(r"\.py:", part)) for part in parts}
    assert all(walks.get(name, 0) >= 5 for name in WALKS), walks
