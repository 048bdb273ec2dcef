"""A branch that could send a secret somewhere new: a person at a terminal is asked, and nobody else confirms it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click
import pytest

from ktrdr_vm.cli.apply import _accept
from ktrdr_vm.errors import UsageError
from ktrdr_vm.policy.reach import Reach

MORE = (Reach("egress to collect.evil.example:443", carries=True), Reach("egress to \x1b[2J:1", carries=False))


def accept(*beyond: Reach, ask: bool) -> None:
    _accept(SimpleNamespace(beyond=beyond, loaded=SimpleNamespace(source="p.yaml")), ask=ask)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [True, False])
def test_at_a_terminal_it_is_asked_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: bool
) -> None:
    asked: list[Any] = []

    def confirm(*words: Any, **_: Any) -> bool:
        asked.append(words)
        return said

    monkeypatch.setattr(click, "confirm", confirm)
    if said:
        accept(*MORE, ask=True)
    else:
        with pytest.raises(UsageError) as refused:
            accept(*MORE, ask=True)
        assert refused.value.exit_code == 2
    shown = capsys.readouterr().err
    assert len(asked) == 1 and "not on the trusted branch: egress to collect.evil.example:443" in shown
    assert "\x1b" not in shown


def test_elsewhere_it_ends_with_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click, "confirm", lambda *_, **__: pytest.fail("nobody is there"))
    with pytest.raises(UsageError, match=r"collect\.evil\.example") as refused:
        accept(*MORE, ask=False)
    assert refused.value.exit_code == 2 and "--accept-changes" in refused.value.hint


def test_what_no_secret_goes_to_needs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click, "confirm", lambda *_, **__: pytest.fail("there is nothing to confirm"))
    accept(MORE[1], ask=True)
    accept(ask=False)
