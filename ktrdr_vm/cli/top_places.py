"""The requests that were submitted from this state directory, as streams. The places are asked, which takes as long as
they take."""

from __future__ import annotations

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.clock import seconds_since
from ktrdr_vm.host.paths import Home
from ktrdr_vm.monitoring.top.streams import Stream
from ktrdr_vm.places.book import Book, Entry
from ktrdr_vm.places.model import find_place
from ktrdr_vm.places.open import open_place
from ktrdr_vm.places.request_state import RequestState
from ktrdr_vm.report.escape import escape_line

# The newest; `ktrdr-vm queue` lists all.
MAX_REQUESTS = 50


def read_requests(home: Home) -> list[Stream]:
    """A stream for each request whose results were not fetched yet. The state of one whose place does not answer is
    `unknown`."""
    wanted: dict[str, list[Entry]] = {}
    for entry in [one for one in Book(home).list() if not one.accepted][-MAX_REQUESTS:]:
        wanted.setdefault(entry.place, []).append(entry)
    found: list[Stream] = []
    for name, entries in wanted.items():
        try:
            far = open_place(find_place(name), home)
            try:
                states = {state.request_id: state for state in far.states([one.request_id for one in entries])}
            finally:
                far.close()
        except KtrdrError as error:
            why = escape_line(error.message, limit=300)
            found += [Stream(one.instance_id, "unknown", name, one.request_id, note=why) for one in entries]
            continue
        found += [_make(name, states[one.request_id], one) for one in entries if one.request_id in states]
    return found


def _make(place: str, state: RequestState, entry: Entry) -> Stream:
    # What a far end says is shown as text of a stranger.
    why, node, outcome = (escape_line(text, limit=200) for text in (state.why, state.node, state.outcome))
    return Stream(
        instance_id=entry.instance_id,
        state=outcome or escape_line(state.state, limit=40),
        place=place,
        request_id=entry.request_id,
        age=seconds_since(entry.created_at),
        note=f"on {node}  {why}".strip() if node else why,
    )
