"""Without libvirt's binding everything works that does not talk to libvirt, and the rest says what is missing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import PROJECT

QUESTIONS: dict[str, Callable[[Libvirt], Any]] = {
    "connect": lambda virt: virt.connect(),
    "find": lambda virt: virt.find("ktrdr-one"),
    "list": lambda virt: virt.list_ours(),
    "start": lambda virt: virt.start("ktrdr-one", "<domain/>", persistent=False),
    "stop": lambda virt: virt.stop("ktrdr-one"),
    "monitor": lambda virt: virt.monitor("ktrdr-one", "query-status"),
    "agent": lambda virt: virt.agent("ktrdr-one", "guest-ping"),
    "measure": lambda virt: virt.measure("ktrdr-one"),
}


@pytest.fixture
def no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    from ktrdr_vm.host import libvirt_binding

    libvirt_binding.silence.cache_clear()
    for name in ("libvirt", "libvirt_qemu"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_binding")
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_who_talks_to_libvirt_is_told_what_is_missing(ask: Callable[[Libvirt], Any]) -> None:
    with pytest.raises(HostError, match="binding of libvirt") as stopped:
        ask(Libvirt())
    assert "libvirt-dev" in stopped.value.hint and stopped.value.where


@pytest.mark.parametrize("path", sorted((PROJECT / "ktrdr_vm").rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_imports_it_with_its_own_import(path: Path) -> None:
    tree = ast.parse(path.read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert named.isdisjoint({"libvirt", "libvirt_qemu"})
