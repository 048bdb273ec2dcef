"""What `apply --on` and the commands about requests share: packing, sending, following and fetching."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ktrdr_vm.places.book import Entry
    from ktrdr_vm.places.far_end import FarEnd
    from ktrdr_vm.places.fetch import Fetched
    from ktrdr_vm.places.model import Place
    from ktrdr_vm.places.pack import Asked
    from ktrdr_vm.places.request_state import RequestState
    from ktrdr_vm.places.submission import Packed


def note(text: str) -> None:
    """A message for the person, on standard error."""
    from ktrdr_vm.report.escape import escape

    click.echo(escape(text), err=True)


@contextlib.contextmanager
def opened(place: Place) -> Iterator[FarEnd]:
    """The place, closed at the end of the block."""
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.open import open_place

    far = open_place(place, find_home(), on_lost=note)
    try:
        yield far
    finally:
        far.close()


def make_asked(
    profile: Path | None,
    workspace: Path | None,
    instance_id: str | None,
    gates: Sequence[str],
    sent_secrets: Sequence[str],
    *,
    cold: bool,
    accept_changes: bool,
) -> Asked:
    """What the options of a command ask for."""
    from ktrdr_vm.inputs.profile_file import find_profile
    from ktrdr_vm.places.pack import Asked

    profile, workspace = find_profile(profile, workspace)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    who = f"{user}@{os.uname().nodename}"
    return Asked(
        profile,
        workspace,
        who,
        instance_id,
        tuple(gates),
        cold=cold,
        accept_changes=accept_changes,
        sent_secrets=tuple(dict.fromkeys(sent_secrets)),
    )


@contextlib.contextmanager
def packed(asked: Asked, far: FarEnd, place: Place, refs: Sequence[str]) -> Iterator[list[Packed]]:
    """The requests, one a ref, or one a node to warm up. Their folders exist until the end of the block."""
    from ktrdr_vm.places.submission import pack_requests

    with tempfile.TemporaryDirectory(prefix="ktrdr-submit-") as name:
        nodes = far.list_nodes() if asked.warm else [""]
        yield pack_requests(asked, place, refs, Path(name), note, far.list_bundles, nodes)


def send(far: FarEnd, made: Sequence[Packed]) -> None:
    """Record the requests here, send them, and start them together."""
    from ktrdr_vm.errors import KtrdrError
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.book import Book
    from ktrdr_vm.places.secret_values import read_sent

    # Before anything is sent: a value that is missing here is an error of this host.
    values = {one.request.request_id: read_sent(one.request, one.folder) for one in made if one.request.sent_secrets}
    book = Book(find_home())
    for one in made:
        book.add(one.request, one.workspace)
    sent: list[str] = []
    try:
        far.send([one.folder for one in made], sent.append)
    except BaseException:
        # None of them was started. Those that have arrived never will be.
        with contextlib.suppress(KtrdrError):
            far.cancel(*sent)
        for one in made:
            book.remove(one.request.request_id)
        raise
    if any(one.request.node for one in made):
        # Each is a job of its own node, and not one of an array.
        for one in made:
            far.start([one.request.request_id])
        return
    far.start([one.request.request_id for one in made], values)


def find_entry(request_id: str) -> Entry:
    """The request by its id, or the newest of an instance_id."""
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.book import Book

    book = Book(find_home())
    try:
        return book.read(request_id)
    except UsageError as error:
        # By its instance_id all of them must be read.
        found = [one for one in book.list() if one.instance_id == request_id]
        if found:
            return found[-1]
        raise UsageError(error.message, where=request_id, hint="`ktrdr-vm queue` lists the requests") from None


def find_entries(names: Sequence[str]) -> list[tuple[Place, list[Entry]]]:
    """The requests of these ids or instance_ids by their place, each once, so that one connection is enough for all of
    a place."""
    from ktrdr_vm.places.model import find_place

    found: dict[str, dict[str, Entry]] = {}
    for entry in map(find_entry, names):
        found.setdefault(entry.place, {})[entry.request_id] = entry
    return [(find_place(name), list(entries.values())) for name, entries in found.items()]


def watch_to_end(far: FarEnd, request_id: str, *, as_json: bool = False) -> RequestState:
    """Print the states and the events of a request until it ends, to standard error, or with `as_json` as lines to
    standard output."""
    import json

    from ktrdr_vm.cli.progress import EventPrinter
    from ktrdr_vm.places.follow import follow

    printer = EventPrinter()

    def on_state(state: RequestState) -> None:
        attempt = f"  attempt {state.attempt}" if state.attempt else ""
        node = f"  on {state.node}" if state.node else ""
        printer.print(
            f"{state.request_id}  {state.state}{attempt}{node}{'  ' + state.why if state.why else ''}", style="bold"
        )

    if as_json:
        return follow(
            far,
            request_id,
            on_state=lambda state: click.echo(json.dumps({"event": "state", **state.to_json()})),
            on_event=lambda event: click.echo(json.dumps(event)),
        )
    return follow(far, request_id, on_state=on_state, on_event=printer.on_event)


def fetch_and_show(
    far: FarEnd, entry: Entry, *, as_json: bool, quiet: bool = False, state: RequestState | None = None
) -> int:
    """Fetch the results of a request, print them, and return the exit code of its run. `state` is known already."""
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.fetch import fetch

    fetched = fetch(far, find_home(), entry, state=state, note=note)
    show_fetched(fetched, as_json=as_json, quiet=quiet)
    return fetched.state.exit_code


def show_fetched(fetched: Fetched, *, as_json: bool, quiet: bool) -> None:
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.cli.progress import show_report
    from ktrdr_vm.evidence.reader import read_report, read_stored

    state, run = fetched.state, fetched.run
    if run is None:
        if as_json:
            echo_json({**state.to_json(), "message": fetched.message, "hint": fetched.hint})
        note(f"{state.request_id}: {state.outcome or state.state}{': ' + fetched.message if fetched.message else ''}")
        if fetched.hint:
            note(f"  next: {fetched.hint}")
        return
    if as_json:
        echo_json(read_stored(run))
    elif not quiet:
        show_report(read_report(run), run, sys.stdout)
