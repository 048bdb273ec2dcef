"""`apply --on PLACE`: submit, watch and fetch in one command."""

from __future__ import annotations

import contextlib

from ktrdr_vm.cli.elsewhere import fetch_and_show, find_entry, note, opened, packed, send, watch_to_end
from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.places.model import find_place
from ktrdr_vm.places.pack import Asked


def refuse_options(**given: object) -> None:
    """UsageError for options of `apply` that need an instance of this host."""
    names = {"continued": "--continue", "from_run": "--from-run", "source": "--from"}
    if used := sorted(names.get(name, f"--{name}") for name, value in given.items() if value):
        raise UsageError(
            f"{', '.join(used)} cannot be used with --on",
            where="ktrdr-vm apply",
            hint="a place runs sandboxes from their beginning to their end",
        )


def apply_on(place_name: str, asked: Asked, *, as_json: bool) -> int:
    """The exit code of the run. An interrupt cancels it and waits for its end; a lost connection does not."""
    place = find_place(place_name)
    with opened(place) as far:
        with packed(asked, far, place, ()) as made:
            request = made[0].request
            try:
                send(far, made)
            except KeyboardInterrupt:
                # It may have been started, and the answer not have arrived.
                with contextlib.suppress(KtrdrError):
                    far.cancel(request.request_id)
                raise
        note(f"{request.request_id}  {request.instance_id}  on {place.name}")
        try:
            watch_to_end(far, request.request_id)
        except KeyboardInterrupt:
            note("interrupted; cancelling (interrupt again to stop immediately)")
            far.cancel(request.request_id)
            watch_to_end(far, request.request_id)
        except KtrdrError as error:
            error.hint = (
                f"`ktrdr-vm watch {request.request_id}` follows the run, `ktrdr-vm fetch {request.request_id}` fetches"
                " its results"
            )
            raise
        return fetch_and_show(far, find_entry(request.request_id), as_json=as_json)
