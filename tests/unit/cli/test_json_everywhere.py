"""Whatever shows something shows it to programs as well: one document, or JSON lines for what follows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ktrdr_vm.cli.main import cli, main
from ktrdr_vm.errors import ResidueError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.instance.instance import Instance

# A program of the guest's or OpenSSH's takes over; the format is another's; or there is nothing on standard output to
# show.
_OTHERWISE = {
    "ssh", "exec", "cp", "forward", "console", "attach", "mcp", "metrics", "ssh-config", "proxy", "logs", "run-request",
    "serve", "relay", "stream", "places setup", "top",
    "suspend", "resume", "secrets revoke", "secrets rotate", "images remove", "templates remove",
}  # fmt: skip


def find_commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from find_commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def test_every_command_that_shows_something_has_json() -> None:
    without = {
        name
        for name, command in find_commands(cli)
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == _OTHERWISE


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    monkeypatch.setattr("ktrdr_vm.instance.instance.os.geteuid", lambda: 0)
    monkeypatch.setattr("ktrdr_vm.cli.main.signal.signal", lambda *_: None)
    monkeypatch.setattr(Libvirt, "find", lambda *_: None)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ktrdr-vm", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(str(ended.value.code))


def test_destroy_says_what_is_left_of_which(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def destroy(self: Instance, notify: object) -> None:
        if self.identity.instance_id == "two":
            raise ResidueError("residue is left", hint="by hand", left=["tap kv1"])

    monkeypatch.setattr(Instance, "destroy", destroy)
    assert call(monkeypatch, "destroy", "one", "two", "--json") == 5
    one, two = json.loads(capsys.readouterr().out)
    assert (one["instance_id"], one["exit_code"], one["residue"]) == ("one", 0, [])
    assert (two["instance_id"], two["exit_code"], two["residue"], two["hint"]) == ("two", 5, ["tap kv1"], "by hand")


def test_what_is_suggested_is_a_fragment_of_a_profile(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = home / "runs" / "one" / "latest"
    run.mkdir(parents=True)
    known = {"instance_id": "one", "run_id": "latest", "outcome": "failed", "exit_code": 1}
    denied = {"host": "a.example.com", "address": "", "port": 443, "rule": "tls: name", "count": 3, "during": "unit: x"}
    (run / "report.json").write_text(json.dumps({**known, "egress": {"allowed": [], "denied": [denied]}}))
    assert call(monkeypatch, "egress", "suggest", "one", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"egress": {"allow": [{"host": "a.example.com", "ports": [443]}]}}
    (run / "report.json").write_text(json.dumps({**known, "egress": {"allowed": [], "denied": []}}))
    assert call(monkeypatch, "egress", "suggest", "one", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {}


def test_events_are_json_whether_asked_for_or_not(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = home / "runs" / "one" / "latest"
    run.mkdir(parents=True)
    (run / "events.jsonl").write_text('{"event": "run_started"}\n')
    for words in ((), ("--json",)):
        assert call(monkeypatch, "events", "one", *words) == 0
        assert json.loads(capsys.readouterr().out) == {"event": "run_started"}


def test_escalations_without_a_command_lists_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "escalations") == 0
    assert capsys.readouterr().out == ""
    assert call(monkeypatch, "escalations", "--help") == 0
