"""The screen, driven by Textual's own pilot, in 80 columns and 24 lines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from ktrdr_vm.errors import HostError
from ktrdr_vm.monitoring.top import actions
from ktrdr_vm.monitoring.top.app import TopApp
from ktrdr_vm.monitoring.top.streams import COLUMNS, Stream


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The commands that were run, each answered with success."""
    words: list[list[str]] = []

    def run(command: list[str]) -> tuple[int, str]:
        words.append(command)
        return 0, ""

    monkeypatch.setattr(actions, "run", run)
    yield words


def drive(app: TopApp, script: Callable[[Pilot[Any]], Awaitable[None]]) -> None:
    async def run() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await settle(pilot, lambda: text(pilot, "text") != "reading…" or bool(text(pilot, "said")))
            await settle(pilot, lambda: all(source.reads for source in app.sources))
            await script(pilot)

    asyncio.run(run())


async def settle(pilot: Pilot[Any], until: Callable[[], bool] = lambda: True) -> None:
    """Until what threads do is shown."""
    for _ in range(500):
        await pilot.pause(0.02)
        if until():
            return
    raise AssertionError("it was not shown within ten seconds")


def text(pilot: Pilot[Any], name: str) -> str:
    return str(pilot.app.screen_stack[0].query_one(f"#{name}", Static).render())


def split(streams: list[Stream]) -> TopApp:
    return TopApp(
        lambda: [one for one in streams if not one.place], lambda: [one for one in streams if one.place], every=3600
    )


def test_all_streams_fit_into_eighty_columns(streams: list[Stream]) -> None:
    async def look(pilot: Pilot[Any]) -> None:
        table = pilot.app.query_one(DataTable)
        rows = [[str(cell) for cell in table.get_row_at(number)] for number in range(table.row_count)]
        assert [row[0] for row in rows] == ["stream-a", "stream-b", "stream-c"]
        assert rows[0] == ["stream-a", "here", "running", "startability: sta…", "75s", "1.5", "3.2 GB", "7", "e1"]
        assert table.virtual_size.width <= 80 and len(table.columns) == len(COLUMNS)
        assert (
            "models.example" in text(pilot, "text")
            and "\x1b" not in text(pilot, "text")
            and "phase create" in text(pilot, "text")
        )
        await pilot.press("down", "down")
        assert "no node is free" in text(pilot, "text")

    drive(split(streams), look)


def test_what_is_read_while_the_screen_goes_ends_in_no_trace(streams: list[Stream]) -> None:
    async def look(pilot: Pilot[Any]) -> None:
        await pilot.app.query_one(DataTable).remove()
        source = pilot.app.sources[0]  # type: ignore[attr-defined]
        await asyncio.to_thread(source._on_read, streams)

    drive(split(streams), look)


@pytest.mark.parametrize(("key", "verb"), [("a", "approve"), ("n", "deny")])
def test_an_escalation_is_answered_with_a_reason_that_was_typed(
    streams: list[Stream], ran: list[list[str]], key: str, verb: str
) -> None:
    async def answer(pilot: Pilot[Any]) -> None:
        await pilot.press(key)
        await pilot.pause()
        await pilot.press("enter")
        # Without a reason there is no answer.
        assert ran == [] and len(pilot.app.screen_stack) == 2
        await pilot.press(*"dqs needed")
        assert pilot.app.screen.query_one(Input).value == "dqs needed"
        await pilot.press("enter")
        await settle(pilot, lambda: text(pilot, "said").endswith("done"))
        assert ran == [["escalations", verb, "stream-a", "e1", "--reason", "dqs needed"]]
        assert text(pilot, "said") == f"escalations {verb} stream-a: done"

    drive(split(streams), answer)


def test_escape_answers_nothing_and_what_asks_nothing_is_not_answered(
    streams: list[Stream], ran: list[list[str]]
) -> None:
    async def refuse(pilot: Pilot[Any]) -> None:
        await pilot.press("a", *"x", "escape")
        await settle(pilot)
        assert ran == [] and len(pilot.app.screen_stack) == 1
        await pilot.press("down", "a")
        assert text(pilot, "said") == "it asks for nothing" and len(pilot.app.screen_stack) == 1

    drive(split(streams), refuse)


def test_an_instance_is_destroyed_only_after_a_yes(streams: list[Stream], ran: list[list[str]]) -> None:
    async def destroy(pilot: Pilot[Any]) -> None:
        await pilot.press("d", "n")
        await settle(pilot)
        assert ran == []
        await pilot.press("down", "d", "y")
        await settle(pilot, lambda: len(ran) == 1)
        assert ran == [["destroy", "--yes", "--force", "stream-b"]]
        await pilot.press("s")
        await settle(pilot, lambda: len(ran) == 2)
        assert ran[1:] == [["resume", "stream-b"]]
        await pilot.press("down", "s")
        assert "stream-c is at cluster" in text(pilot, "said")
        await pilot.press("d", "y")
        await settle(pilot, lambda: len(ran) == 3)
        assert ran[2:] == [["cancel", "r20260102-030405-abcdef"]]

    drive(split(streams), destroy)


def test_a_failed_command_is_shown_with_what_it_said(streams: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "run", lambda _: (4, "ktrdr-vm: no room [/bold]\n  next: free some"))

    async def suspend(pilot: Pilot[Any]) -> None:
        await pilot.press("s")
        await settle(pilot, lambda: "…" not in text(pilot, "said"))
        assert text(pilot, "said") == "ktrdr-vm: no room [/bold]\n  next: free some"

    drive(split(streams), suspend)


def test_the_cursor_stays_with_its_stream_when_others_come_and_go(streams: list[Stream]) -> None:
    async def change(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, TopApp)

        async def read_again() -> None:
            before = [source.reads for source in app.sources]
            for source in app.sources:
                source.read_soon()
            await settle(
                pilot, lambda: all(source.reads > count for source, count in zip(app.sources, before, strict=True))
            )

        await pilot.press("down")
        del streams[0]
        await read_again()
        assert app.selected is not None and app.selected.instance_id == "stream-b"
        streams.clear()
        await read_again()
        assert app.selected is None and "no streams" in text(pilot, "text")

    drive(split(streams), change)


def test_a_host_that_cannot_be_read_is_said_and_asked_again() -> None:
    def read() -> list[Stream]:
        raise HostError("libvirtd does not answer", where="qemu:///system", hint="start it")

    async def look(pilot: Pilot[Any]) -> None:
        assert text(pilot, "said") == "libvirtd does not answer\nnext: start it"

    drive(TopApp(read, list, every=3600), look)


def test_what_was_read_while_the_program_ends_is_dropped(
    streams: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on a busy host: the screens were gone when the thread passed on what it had read."""
    app = TopApp(lambda: streams, list, every=60)
    monkeypatch.setattr(app, "call_from_thread", lambda act, *values: act(*values))
    monkeypatch.setattr(TopApp, "screen_stack", property(lambda _: []))
    here, _ = app.sources
    here._read_once()
    assert here.reads == 1


def test_a_place_that_does_not_answer_delays_nothing_of_this_host(streams: list[Stream]) -> None:
    answer = threading.Event()

    def hang() -> list[Stream]:
        answer.wait(30)
        return []

    async def look(pilot: Pilot[Any]) -> None:
        here, places = app.sources
        await settle(pilot, lambda: here.reads >= 5)
        assert places.reads == 0 and sum(thread.name == "top" for thread in threading.enumerate()) == 2
        # A dialog is no obstacle either.
        await pilot.press("a")
        before = here.reads
        await settle(pilot, lambda: here.reads > before + 2)
        answer.set()

    app = TopApp(lambda: streams[:2], hang, every=0.05)

    async def run() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await look(pilot)

    asyncio.run(run())
