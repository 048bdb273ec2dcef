"""Without libvirt's binding everything works that does not talk to libvirt, and the rest says what is missing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.libvirt import Libvirt

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
    from ktrdr_vm.host import libvirt

    libvirt._quiet.cache_clear()
    for name in ("libvirt", "libvirt_qemu"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_binding")
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_who_talks_to_libvirt_is_told_what_is_missing(ask: Callable[[Libvirt], Any]) -> None:
    with pytest.raises(HostError, match="binding of libvirt") as stopped:
        ask(Libvirt())
    assert "libvirt-dev" in stopped.value.hint and stopped.value.where


@pytest.mark.usefixtures("no_binding")
@pytest.mark.parametrize("module", ["ktrdr_vm.cli.apply", "ktrdr_vm.cli.doctor", "ktrdr_vm.api", "ktrdr_vm.monitoring.doctor"])
def test_commands_are_imported_without_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith("ktrdr_vm.")]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.import_module(module)
