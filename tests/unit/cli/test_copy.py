"""`cp` says in our words what is missing on this host, with the exit code of a wrong call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli import ssh


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(ssh, "_become", lambda *words: calls.append(words))
    monkeypatch.setattr(ssh, "_options", lambda _: [])
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("x")
    return calls


def copy(*words: str) -> Any:
    return CliRunner().invoke(ssh.cp, list(words))


@pytest.mark.parametrize("words", [("missing", "demo:/x"), ("demo:/x", "no/such/folder/x"), ("a", "b"), ("a:x", "b:y")])
def test_a_mistake_is_ours_to_say(called: list[tuple[str, ...]], words: tuple[str, str]) -> None:
    assert getattr(copy(*words).exception, "exit_code", None) == 2 and called == []


@pytest.mark.parametrize(
    "words", [("there", "demo:/x"), (".", "demo:/x"), ("demo:/x", "new"), ("demo:/x", "."), ("demo:/x", "there")]
)
def test_what_can_be_copied_is_left_to_scp(called: list[tuple[str, ...]], words: tuple[str, str]) -> None:
    assert copy(*words).exit_code == 0
    assert called == [("scp", "-r", "-p", "--", *words)]
