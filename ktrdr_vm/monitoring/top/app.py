"""The screen of `ktrdr-vm top`: a table of streams, and the selected one below it."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from textual.app import App, ComposeResult, ScreenStackError
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from ktrdr_vm.monitoring.asks import describe_ask
from ktrdr_vm.monitoring.top import actions
from ktrdr_vm.monitoring.top.dialogs import AnswerDialog, ConfirmDialog
from ktrdr_vm.monitoring.top.source import PLACES_EVERY, Read, Source
from ktrdr_vm.monitoring.top.streams import COLUMNS, Stream

# Of columns, so that all of them fit into 80; longer texts are cut in the table and whole below it.
_WIDTHS = {"INSTANCE": 16, "PLACE": 7, "STATE": 9, "DOING": 18, "AGE": 4, "CPU": 3, "MEMORY": 8, "DENIED": 3, "ASKS": 3}
_TITLES = {"DENIED": "DNY", "ASKS": "ASK"}


class TopApp(App[None]):
    """`read` returns the streams of this host, `read_places` those of other places; both are called in threads."""

    TITLE = "ktrdr-vm top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    DataTable { height: 45%; }
    #details { height: 1fr; border-top: solid $foreground 50%; padding: 0 1; }
    #said { height: auto; max-height: 4; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "answer('approve')", "Approve"),
        Binding("n", "answer('deny')", "Deny"),
        Binding("enter", "enter", "Shell", priority=True),
        Binding("f", "follow", "Follow"),
        Binding("s", "suspend", "Suspend"),
        Binding("d", "destroy", "Destroy"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, read: Read, read_places: Read, *, every: float = 2.0) -> None:
        super().__init__()
        self.sources = (
            self._make_source("_here", read, every),
            self._make_source("_elsewhere", read_places, PLACES_EVERY),
        )
        self._here: Sequence[Stream] = ()
        self._elsewhere: Sequence[Stream] = ()
        self._busy: set[str] = set()

    def compose(self) -> ComposeResult:
        yield DataTable(cursor_type="row", cell_padding=0, zebra_stripes=False)
        with VerticalScroll(id="details"):
            yield Static("reading…", id="text", markup=False)
        yield Static("", id="said", markup=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        table = self._main.query_one(DataTable)
        for name in COLUMNS:
            # A space between columns; padding on both sides would take two.
            table.add_column(_TITLES.get(name, name), key=name, width=_WIDTHS[name] + 1)
        for source in self.sources:
            source.start()

    def on_unmount(self) -> None:
        for source in self.sources:
            source.stop()

    # -- reading ----------------------------------------------------------------------------------------------------

    def _make_source(self, name: str, read: Read, every: float) -> Source:
        # The application may have ended while it was read, or be removing its screen.
        def pass_on(act: Callable[..., None], *values: object) -> None:
            with contextlib.suppress(RuntimeError, NoMatches, ScreenStackError):
                self.call_from_thread(act, *values)

        return Source(read, every, functools.partial(pass_on, self._show, name), functools.partial(pass_on, self._say))

    @property
    def _main(self) -> Screen[Any]:
        """The screen with the table, also while a dialog is above it."""
        stack = self.screen_stack
        if not stack:
            raise ScreenStackError("the application has ended")
        return stack[0]

    @property
    def streams(self) -> list[Stream]:
        return [*self._here, *self._elsewhere]

    def _show(self, name: str, found: Sequence[Stream]) -> None:
        setattr(self, name, found)
        table = self._main.query_one(DataTable)
        keys = [stream.key for stream in self.streams]
        present = [str(key.value) for key in table.rows]
        if present != keys:
            selected = self.selected
            table.clear()
            for stream in self.streams:
                table.add_row(*_fit(stream), key=stream.key)
            if selected is not None and selected.key in keys:
                table.move_cursor(row=keys.index(selected.key))
        else:
            for stream in self.streams:
                for column, cell in zip(COLUMNS, _fit(stream), strict=True):
                    table.update_cell(stream.key, column, cell)
        self._show_details()

    @property
    def selected(self) -> Stream | None:
        """The stream under the cursor."""
        table = self._main.query_one(DataTable)
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return None
        key = list(table.rows)[table.cursor_row].value
        return next((stream for stream in self.streams if stream.key == key), None)

    def on_data_table_row_highlighted(self) -> None:
        self._show_details()

    def _show_details(self) -> None:
        stream = self.selected
        self._main.query_one("#text", Static).update(
            describe(stream) if stream else "no streams; `ktrdr-vm apply` begins one"
        )

    # -- acting -----------------------------------------------------------------------------------------------------

    def action_answer(self, verb: str) -> None:
        stream = self.selected
        if stream is None or not stream.asks:
            self._say("it asks for nothing")
            return
        one = stream.asks[0]

        def answered(reason: str | None) -> None:
            if reason:
                self._run(actions.answer(stream, one.id, verb, reason))

        self.push_screen(AnswerDialog(verb, stream.instance_id, one), answered)

    def action_suspend(self) -> None:
        stream = self._require_here()
        if stream is not None:
            self._run(actions.toggle_suspend(stream))

    def action_destroy(self) -> None:
        stream = self.selected
        if stream is None:
            return
        disk = ", and its disk is deleted" if stream.mode == "interactive" else ""
        text = (
            f"cancel {stream.request_id}?"
            if stream.request_id
            else f"destroy {stream.instance_id}? A run of it ends first{disk}."
        )

        def confirmed(wanted: bool | None) -> None:
            if wanted:
                self._run(actions.destroy(stream))

        self.push_screen(ConfirmDialog(text), confirmed)

    def action_enter(self) -> None:
        stream = self.selected
        if stream is not None:
            self._run_here(actions.enter(stream))

    def action_follow(self) -> None:
        stream = self.selected
        if stream is not None:
            self._run_here(actions.follow(stream))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # In a dialog the keys belong to its fields.
        return len(self.screen_stack) < 2 or action in ("quit", "command_palette")

    def _require_here(self) -> Stream | None:
        stream = self.selected
        if stream is not None and stream.place:
            self._say(f"{stream.instance_id} is at {stream.place}; `ktrdr-vm watch {stream.request_id}` follows it")
            return None
        return stream

    def _run(self, words: list[str]) -> None:
        name = " ".join(words[:3])
        if name in self._busy:
            return
        self._busy.add(name)
        self._say(f"{name} …")
        threading.Thread(target=self._act, args=(name, words), daemon=True).start()

    def _act(self, name: str, words: list[str]) -> None:
        code, said = actions.run(words)
        self._busy.discard(name)
        with contextlib.suppress(RuntimeError):
            self.call_from_thread(self._say, said if code else f"{name}: done")
        for source in self.sources:
            source.read_soon()

    def _run_here(self, words: list[str]) -> None:
        with self.suspend():
            code = actions.run_here(words)
            # One that was interrupted has been read.
            if code not in (0, 130):
                with contextlib.suppress(EOFError, KeyboardInterrupt):
                    input(f"`ktrdr-vm {' '.join(words)}` ended with exit code {code}. Enter returns to `top`. ")
        self.refresh()

    def _say(self, text: str) -> None:
        self._main.query_one("#said", Static).update(text)


def describe(stream: Stream) -> str:
    """The selected stream, whole: what it asks for, else its last lines."""
    head = f"{stream.instance_id}  {stream.place or 'here'}  {stream.state}  {stream.doing}"
    parts = [head, *([stream.note] if stream.note else [])]
    for one in stream.asks:
        parts += ["", f"{one.id}, since {one.received_at}", describe_ask(one)]
    if stream.progress.lines:
        parts += ["", *stream.progress.lines[-12:]]
    return "\n".join(parts)


@functools.cache
def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _fit(stream: Stream) -> list[str]:
    return [_cut(cell, _WIDTHS[name]) for name, cell in zip(COLUMNS, stream.cells, strict=True)]
