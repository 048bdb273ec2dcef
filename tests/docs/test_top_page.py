"""docs/top.md: its table, its keys, and the commands behind them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest

from ktrdr_vm.cli import top_places
from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import HostError
from ktrdr_vm.host.paths import PROJECT, Home
from ktrdr_vm.monitoring.top import actions
from ktrdr_vm.monitoring.top.app import _TITLES, TopApp
from ktrdr_vm.monitoring.top.streams import COLUMNS, Stream
from ktrdr_vm.places.book import Book, Entry

TEXT = (PROJECT / "docs/top.md").read_text(encoding="utf-8")
HERE = Stream("one", "running")
THERE = Stream("two", "waiting", place="cluster", request_id="r20260102-030405-abcdef")


def test_the_table_of_the_page_has_the_columns_and_keys() -> None:
    [head] = [line for line in TEXT.splitlines() if line.startswith("INSTANCE")]
    assert head.split() == [_TITLES.get(name, name) for name in COLUMNS]
    block = TEXT.partition("```text\n")[2].partition("```")[0]
    assert max(map(len, block.splitlines())) == 80
    shown = {"enter": "Enter", **{key: f"`{key}`" for key in "anfsdq"}}
    keys = [one.key for one in TopApp.BINDINGS]  # type: ignore[union-attr]
    assert sorted(keys) == sorted(shown)
    for key in keys:
        assert f"| {shown[key]}" in TEXT or f", {shown[key]} |" in TEXT


@pytest.mark.parametrize("stream", [HERE, replace(HERE, state="suspended"), THERE], ids=["here", "suspended", "there"])
def test_each_key_runs_a_command_of_this_program(stream: Stream) -> None:
    made = [actions.destroy(stream), actions.enter(stream), actions.follow(stream), actions.toggle_suspend(stream)]
    made.append(actions.answer(stream, "e1", "deny", "--no"))
    for words in made:
        command, rest = cli.resolve_command(click.Context(cli), list(words))[1:]
        while isinstance(command, click.Group):
            command, rest = command.resolve_command(click.Context(command), rest)[1:]
        assert command is not None
        command.make_context(words[0], list(rest), resilient_parsing=False)
    names = [words[0] for words in made[:4]]
    assert names == (
        ["cancel", "ssh", "watch", "suspend"]
        if stream.place
        else ["destroy", "ssh", "logs", "resume" if stream.state == "suspended" else "suspend"]
    )
    assert stream.place or "--force" in made[0]


def test_a_request_is_a_stream_until_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"not fetched yet, of these the newest {top_places.MAX_REQUESTS}." in " ".join(TEXT.split())
    entries = [
        Entry(f"r{number:04}", "cluster", f"one-{number}", "profile", "", "2026-01-02T03:04:05Z", accepted=number == 99)
        for number in range(100)
    ]
    monkeypatch.setattr(Book, "list", lambda _: entries)

    def refuse(*_: object) -> None:
        raise HostError("it does not answer", where="cluster", hint="wait")

    monkeypatch.setattr(top_places, "find_place", refuse)
    found = top_places.read_requests(Home(tmp_path))
    assert [one.instance_id for one in found] == [f"one-{number}" for number in range(49, 99)]


def test_plain_needs_nothing_of_the_extra() -> None:
    code = "import sys; sys.modules['textual'] = None\nimport ktrdr_vm.cli.top, ktrdr_vm.monitoring.top.plain\n"
    code += "import ktrdr_vm.monitoring.top.streams, ktrdr_vm.monitoring.top.source, ktrdr_vm.cli.top_places\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
