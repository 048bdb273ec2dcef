"""Whoever wants to enter a suspended instance is told how it is resumed, and nothing is begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli import ssh, ssh_proxy
from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.instance import instance as instance_module

WORKSPACE = {"workspace": {"source": ".", "target": "/workspace"}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]) -> Home:
    made = Home(tmp_path)
    made.create()
    write_instance(made, "one", WORKSPACE, state="suspended", kept=True)
    made.instance("one").saved.write_bytes(b"state")
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr(Libvirt, "find", lambda *_: None)
    monkeypatch.setattr(instance_module, "require_root", lambda: None)
    monkeypatch.setattr(ssh, "_become", lambda *_: pytest.fail("a client was started"))
    return made


@pytest.mark.parametrize(
    "words",
    [
        "ssh one",
        "exec one -- true",
        "cp one:/etc/hostname .",
        "forward one 18999",
        "console one",
        "proxy one",
        "proxy one.ktrdr",
        "pull one --stream",
        "push one",
        "branch one two",
        "snapshot one first",
    ],
)
def test_it_says_how_it_is_resumed(home: Home, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def connect(*_: object) -> None:
        raise FileNotFoundError(2, "there is no network namespace ktrdr-one")

    monkeypatch.setattr(ssh_proxy.netns, "connect", connect)
    before = home.instance("one").journal.read_bytes()
    error = CliRunner().invoke(cli, words.split(), standalone_mode=False).exception
    assert isinstance(error, UsageError) and error.message == "one is suspended", error
    assert "`ktrdr-vm resume one`" in error.hint
    assert home.instance("one").journal.read_bytes() == before


def test_the_serial_console_is_that_of_the_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal]
) -> None:
    write_instance(Home(tmp_path), "one")
    called: list[tuple[str, ...]] = []
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr(ssh, "_become", lambda *words: called.append(words))
    CliRunner().invoke(cli, ["console", "one"], standalone_mode=False)
    assert [(words[0], words[-2:]) for words in called] == [("virsh", ("console", "ktrdr-one"))]
