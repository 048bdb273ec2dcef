"""A command is repeated at the place in the same words, and is about this host unless the instance is known only
elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ktrdr_vm.cli import at_place
from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.places import connection
from ktrdr_vm.places.book import Book, Entry
from ktrdr_vm.places.model import Place
from ktrdr_vm.places.reach import Reach

REQUEST = "20260101T000000Z-0123abcd"
ENTRY = Entry(REQUEST, "far", "demo", "", "", "2026-01-01T00:00:00Z")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    configuration = tmp_path / "config/ktrdr-vm"
    configuration.mkdir(parents=True)
    (configuration / "places.yaml").write_text(
        "places: {far: {kind: ssh, host: runner@far}, other: {kind: ssh, host: other}}\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Place and words of each command that acted at one."""
    calls: list[tuple[str, list[str]]] = []

    def act(ctx: click.Context, reach: Reach, _entry: Entry | None) -> int:
        calls.append((reach.place.name, at_place.render_words(ctx)))
        return 0

    monkeypatch.setattr(at_place, "_ACTIONS", dict.fromkeys(at_place._ACTIONS, act))
    return calls


Call = Callable[..., Any]


def call(*words: str) -> Any:
    return CliRunner().invoke(cli, list(words))


@pytest.mark.parametrize(
    ("words", "there"),
    [
        ("exec --on far demo -- ls -t --on x", "exec -- demo -- ls -t --on x"),
        ("exec -t --expect=r1 --on=far demo ls", "exec --tty --expect=r1 -- demo ls"),
        ("ssh --on far demo", "ssh -- demo"),
        ("logs demo --follow --on far", "logs --follow -- demo"),
        ("escalations approve --on far demo e1 --reason why --port 1 --port 2", "escalations approve --reason=why --port=1 --port=2 -- demo e1"),
        ("escalations list --on far demo --pending", "escalations list --pending -- demo"),
        ("report --on far demo --run 20260101T000000Z-0123", "report --run=20260101T000000Z-0123 -- demo"),
        ("attach --on far demo --debug", "attach -- demo"),
    ],
)  # fmt: skip
def test_the_words_are_those_that_were_given(
    words: str, there: str, home: Home, seen: list[tuple[str, list[str]]]
) -> None:
    result = call(*words.split())
    assert result.exception is None, result.output
    assert seen == [("far", there.split())]


def test_a_reason_is_one_word(home: Home, seen: list[tuple[str, list[str]]]) -> None:
    call("escalations", "deny", "--on", "far", "demo", "e1", "--reason", "--on the way; $HOME")
    assert seen == [("far", ["escalations", "deny", "--reason=--on the way; $HOME", "--", "demo", "e1"])]


def test_the_place_is_that_of_the_newest_request(home: Home, seen: list[tuple[str, list[str]]]) -> None:
    assert isinstance(call("attach", "demo").exception, UsageError) and seen == [], "nothing was submitted from here"
    Book(home).write(ENTRY)
    Book(home).write(Entry("20270101T000000Z-0123abcd", "other", "demo", "", "", "2027-01-01T00:00:00Z"))
    Book(home).write(Entry("20280101T000000Z-0123abcd", "far", "another", "", "", "2028-01-01T00:00:00Z"))
    call("attach", "demo")
    call("cp", "demo:/x", ".")
    call("attach", "--on", "far", "demo")
    assert [place for place, _ in seen] == ["other", "other", "far"]


def test_an_instance_and_evidence_of_this_host_are_read_here(home: Home, seen: list[tuple[str, list[str]]]) -> None:
    Book(home).accept(ENTRY, 1, "20260101T000000Z-0123")
    call("report", "demo")
    call("events", "demo", "--run", "20260101T000000Z-0123")
    assert seen == [], "its results were fetched"
    call("attach", "demo")
    assert len(seen) == 1
    home.instance("demo").journal.parent.mkdir(parents=True)
    home.instance("demo").journal.write_text("{}")
    call("attach", "demo")
    call("exec", "--on", "local", "demo", "true")
    assert len(seen) == 1


@pytest.mark.parametrize(
    "words", [("exec", "--on", "typo", "demo", "x"), ("cp", "--on", "far", "a", "b"), ("attach", "--on", "far", "../x")]
)
def test_a_wrong_place_or_instance_is_a_usage_error(
    words: tuple[str, ...], home: Home, seen: list[tuple[str, list[str]]]
) -> None:
    result = call(*words)
    assert seen == [] and (result.exit_code == 2 or isinstance(result.exception, UsageError))


def test_the_words_of_openssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktrdr_vm.places.reach.process.require_program", lambda name: Path("/usr/bin") / name)
    words = Reach(Place("far", "ssh", "runner@far"), "demo").make_words(["exec", "--", "demo", "echo", "a  b; $x"])
    assert words[:2] == ["/usr/bin/ssh", "-T"] and "-oBatchMode=yes" in words and words[-3:-1] == ["--", "runner@far"]
    # Before the person's own configuration, which may forward it to each host.
    assert {"-oForwardAgent=no", "-oForwardX11=no", "-oClearAllForwardings=yes"} <= set(words[: words.index("--")])
    assert words[-1].startswith("ktrdr-vm relay --release ") and words[-1].endswith(
        " demo -- exec -- demo echo 'a  b; $x'"
    )


@pytest.mark.parametrize("ssh_config", ["", "/own/config"])
def test_the_connection_of_a_place_forwards_no_agent(monkeypatch: pytest.MonkeyPatch, ssh_config: str) -> None:
    started: list[list[str]] = []

    def start(words: list[str], **_: object) -> None:
        started.append(words)
        raise HostError("not started", where="x", hint="y")

    monkeypatch.setattr(connection.process, "start", start)
    with pytest.raises(HostError):
        connection.SshChannel(Place("far", "ssh", "runner@far", ssh_config=ssh_config))
    [words] = started
    options = words[: words.index("--")]
    assert {"-oForwardAgent=no", "-oForwardX11=no", "-oBatchMode=yes"} <= set(options)
    assert (("-F", ssh_config) in itertools.pairwise(options)) is bool(ssh_config)
