"""`gate` shows what `debug` says, escaped and within bounds."""

from __future__ import annotations

import pytest

from ktrdr_vm.cli.progress import show_gate_event


def say(message: str, module: str = "debug") -> None:
    show_gate_event(
        {
            "event": "task_finished",
            "task": "say",
            "outcome": "ok",
            "duration_s": 0.1,
            "module": module,
            "message": message,
        }
    )


def test_the_message_stands_under_the_task_s_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo [bold]\x1b[31m")
    task, *lines = capsys.readouterr().err.splitlines()
    assert task.split() == ["ok", "say", "0.1s"]
    assert [line.strip() for line in lines] == ["one", "two [bold]\\x1b[31m"]


def test_a_long_one_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    say("line\n" * 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 42 and "the report has the rest" in lines[-1]


def test_other_modules_say_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    say("changed", "command")
    assert len(capsys.readouterr().err.splitlines()) == 1
