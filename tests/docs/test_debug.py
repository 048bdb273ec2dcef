"""`--debug`: each printed line is run by `sh` as it stands, and does what the program did."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ktrdr_vm.cli import debug
from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import process
from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.instance.secret_sources import read_source
from ktrdr_vm.profile.model import Secret

WORDS = [
    "plain",
    "",
    "two words",
    "it's",
    'a"b$HOME`x`',
    "\x1b[31m\\033 100% %s",
    "line\nend",
    "ends\n\n",
    "caf\u00e9",
    "*",
    "#x",
    "\udcff\x7f",
]
PRINT = "import os, sys; print([os.fsencode(word) for word in sys.argv[1:]], os.getcwd(), os.environ.get('MARK'))"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    monkeypatch.setattr(process, "_observers", [debug.print_call])
    monkeypatch.setattr(process, "_secrets", set())
    return capsys


def run_in_sh(text: str) -> str:
    return subprocess.run(["sh", "-c", text], capture_output=True, text=True, timeout=60, check=True, cwd="/").stdout


@pytest.mark.parametrize("word", WORDS, ids=repr)
def test_a_printed_line_does_in_sh_what_the_program_did(
    calls: pytest.CaptureFixture[str], tmp_path: Path, word: str
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    done = process.run(
        [sys.executable, "-c", PRINT, word, "last"],
        timeout=60,
        cwd=folder,
        environment={"MARK": "it's set"},
        stdin=b"never shown",
    )
    line = calls.readouterr().err
    assert line.endswith("  # exit code 0; 11 bytes of standard input not shown\n") and "never shown" not in line
    assert run_in_sh(line) == done.text != ""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is root's to become")
def test_a_line_for_another_user_becomes_this_user(calls: pytest.CaptureFixture[str]) -> None:
    done = process.run(["id"], timeout=60, owner=(65534, 65534), cwd=Path("/"))
    assert run_in_sh(calls.readouterr().err) == done.text


def test_how_a_call_ended_is_in_the_line(calls: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    process.run(["false"], timeout=60, check=False)
    with pytest.raises(KtrdrError):
        process.run(["sleep", "60"], timeout=0.1)
    with pytest.raises(KtrdrError):
        process.run(["true"], timeout=60, cwd=tmp_path / "gone")
    process.start(["true"]).wait(60)
    outcomes = [line.partition("  # ")[2] for line in calls.readouterr().err.splitlines()]
    assert outcomes[:3] == ["exit code 1", "killed after 0.1 s", "cannot be started: No such file or directory"]
    assert outcomes[3].startswith("started as process ")


@pytest.mark.parametrize("source", ["env", "file", "command"])
def test_a_secret_that_was_read_is_never_printed(
    calls: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    value = "s3cret-value-that-nobody-sees"
    file = tmp_path / "value"
    file.write_text(value)
    monkeypatch.setenv("KTRDR_TEST_SECRET", value)
    given = {
        "env": {"env": "KTRDR_TEST_SECRET"},
        "file": {"file": str(file)},
        "command": {"command": ("/bin/sh", "-c", "printf s3cret-value-%s that-nobody-sees")},
    }[source]
    assert read_source(Secret(name="token", path="/run/secrets/token", **given)) == value.encode()  # type: ignore[arg-type]  # one of three
    process.run(["true", f"--token={value}"], timeout=60)
    printed = calls.readouterr().err
    assert "--token=***" in printed and value not in printed


@pytest.mark.parametrize("place", ["before", "behind", "variable", "not"])
def test_each_way_to_ask_for_it(tmp_path: Path, place: str) -> None:
    words = {"before": ["--debug", "plan"], "behind": ["plan", "--debug"]}.get(place, ["plan"])
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(repository)], check=True, timeout=60)
    environment = {
        **os.environ,
        "KTRDR_VM_DEBUG": "1" if place == "variable" else "0",
        "KTRDR_VM_HOME": str(tmp_path / "home"),
    }
    profile = str(PROJECT / "profiles" / "startability.yaml")
    command = [sys.executable, "-m", "ktrdr_vm.cli.main", *words, profile, "--workspace", str(repository)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    printed = [line for line in done.stderr.splitlines() if "  # exit code " in line]
    assert bool(printed) == (place != "not"), done.stderr
    assert "  # exit code" not in done.stdout


def find_commands(command: click.Command, words: str = "") -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from find_commands(found, f"{words} {name}")


def test_every_command_takes_it_once() -> None:
    assert [
        words for words, one in find_commands(cli) if sum("--debug" in option.opts for option in one.params) != 1
    ] == []


@pytest.mark.parametrize("name", ["ssh", "exec"])
def test_behind_the_instance_it_is_the_guests_word(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.make_context(name, ["--debug", "one", "docker", "--debug", "ps"]).params["command"] == (
        "docker",
        "--debug",
        "ps",
    )
