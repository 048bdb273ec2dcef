"""The words after the instance belong to the command, word for word, options and `--help` included."""

from __future__ import annotations

import shlex

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli import ssh as ssh_module

COMMANDS = [
    "ls -lt /etc", "docker run -it alpine", "sort -t, -k2 f", "npm test -- -t x", "pytest --tty", "docker --help", "true", "sh -c 'exit 3'",
    "printf %s -h", "git log -t -- x", "-x", "--tty",
]  # fmt: skip


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    words: list[str] = []
    monkeypatch.setattr(ssh_module, "_become", lambda *said: words.extend(said))
    monkeypatch.setattr(ssh_module, "_options", lambda _instance, _expect="": [])
    monkeypatch.setattr(ssh_module, "open_instance", lambda name: name)
    return words


@pytest.mark.parametrize("dashes", [[], ["--"]], ids=["plain", "dashes"])
@pytest.mark.parametrize("line", COMMANDS)
def test_exec_runs_them_word_for_word(became: list[str], line: str, dashes: list[str]) -> None:
    done = CliRunner().invoke(ssh_module.exec_, ["demo", *dashes, *shlex.split(line)])
    assert done.exit_code == 0, done.output
    assert became[:-1] == ["ssh", "-T", "--", "demo"]
    # A shell's line: the script that runs them, its name, and the words.
    assert shlex.split(became[-1])[5:] == shlex.split(line) and shlex.split(became[-1])[:3] == ["exec", "sh", "-c"]


def test_a_terminal_is_asked_for_before_the_instance(became: list[str]) -> None:
    assert CliRunner().invoke(ssh_module.exec_, ["-t", "demo", "top"]).exit_code == 0
    assert became[:-1] == ["ssh", "-tt", "--", "demo"]
    script = shlex.split(became[-1])
    assert script[:3] == ["exec", "sh", "-c"] and script[4:] == ["sh", "top"] and script[3].endswith('\n"$@"; exit $?')


@pytest.mark.parametrize("line", ["docker --help", "ls -t"])
def test_ssh_too(became: list[str], line: str) -> None:
    assert CliRunner().invoke(ssh_module.ssh, ["demo", *line.split()]).exit_code == 0
    assert became[:-1] == ["ssh", "--", "demo"]
    # A shell's line: the script that runs the command's line, its name, and that line as it is.
    assert shlex.split(became[-1])[:3] == ["exec", "sh", "-c"] and shlex.split(became[-1])[-1] == line


@pytest.mark.parametrize("dashes", [["--"], []])
def test_no_command_is_an_error_and_no_success(became: list[str], dashes: list[str]) -> None:
    assert CliRunner().invoke(ssh_module.exec_, ["demo", *dashes]).exit_code == 2 and became == []


def test_a_port_of_this_host_is_forwarded_once(became: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_module, "require_free_port", lambda _: None)
    twice = CliRunner().invoke(ssh_module.forward, ["demo", "8000", "8000:9000"])
    assert twice.exit_code == 2 and "8000 of this host occurs twice" in twice.output and became == []
    assert CliRunner().invoke(ssh_module.forward, ["demo", "8000", "8001:8000"]).exit_code == 0
