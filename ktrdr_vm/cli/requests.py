"""`submit`, `queue`, `watch`, `cancel`, `fetch`: requests at the places of a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import json_option, plan_options, profile_argument, send_secret_option

if TYPE_CHECKING:
    from ktrdr_vm.places.request_state import RequestState

_place_option = click.option(
    "--on", "place_name", required=True, metavar="PLACE", help="A place of places.yaml, or `local`."
)


@click.command()
@profile_argument
@_place_option
@plan_options
@click.option(
    "--ref",
    "refs",
    multiple=True,
    metavar="REF",
    help="Run this branch or tag instead of the working tree. Repeatable.",
)
@click.option(
    "--gate", "gates", multiple=True, metavar="NAME", help="Run these gates instead of the profile's. Repeatable."
)
@click.option("--cold", is_flag=True, help="Boot from power-on instead of forking a template.")
@click.option(
    "--accept-changes", is_flag=True, help="Accept new destinations of secrets in the profile of this branch."
)
@click.option("--warm", is_flag=True, help="Build image and template on each host of the place, and run nothing.")
@send_secret_option
@click.option("--script", is_flag=True, help="Print what would be given to the scheduler, and submit nothing.")
@json_option
def submit(
    profile: Path | None,
    place_name: str,
    instance_id: str | None,
    workspace: Path | None,
    refs: tuple[str, ...],
    gates: tuple[str, ...],
    cold: bool,
    accept_changes: bool,
    warm: bool,
    sent_secrets: tuple[str, ...],
    script: bool,
    as_json: bool,
) -> None:
    """Send PROFILE, by default ktrdr.yaml, with its workspace to a place, and print the id of the request: one for each
    --ref."""
    from ktrdr_vm.cli.elsewhere import make_asked, opened, packed, send
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.places.model import find_place

    place = find_place(place_name)
    asked = make_asked(profile, workspace, instance_id, gates, sent_secrets, cold=cold, accept_changes=accept_changes)
    if warm and (refs or cold or sent_secrets):
        raise click.UsageError("--warm runs nothing: it excludes --ref, --cold and --send-secret")
    asked = replace(asked, warm=warm)
    with opened(place) as far, packed(asked, far, place, refs) as made:
        requests = [one.request for one in made]
        if script:
            click.echo(far.render_script(requests), nl=False)
            return
        send(far, made)
    if as_json:
        echo_json(
            [{"request_id": one.request_id, "instance_id": one.instance_id, "place": place.name} for one in requests]
        )
    for one in () if as_json else requests:
        click.echo(one.request_id)


@click.command()
@click.option(
    "--on",
    "place_name",
    metavar="PLACE",
    help="Everything of this user at a place. Default: what was submitted from here.",
)
@json_option
def queue(place_name: str | None, as_json: bool) -> int:
    """List requests: their state, why they wait, node and attempt. Exit code 4 if a place does not answer."""
    from ktrdr_vm.cli.elsewhere import note, opened
    from ktrdr_vm.cli.output import echo_json, say_none
    from ktrdr_vm.errors import KtrdrError
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.book import Book
    from ktrdr_vm.places.model import find_place

    wanted: dict[str, list[str] | None] = {}
    if place_name is not None:
        wanted[place_name] = None
    else:
        for entry in Book(find_home()).list():
            wanted.setdefault(entry.place, []).append(entry.request_id)  # type: ignore[union-attr]
    rows: list[tuple[str, RequestState]] = []
    code = 0
    for name, request_ids in wanted.items():
        try:
            with opened(find_place(name)) as far:
                rows += [(name, state) for state in far.states(request_ids)]
        except KtrdrError as error:
            note(f"{name}: {error}")
            code = 4
    if as_json:
        echo_json([{"place": name, **state.to_json()} for name, state in rows])
    elif rows:
        _show_table(rows)
    elif not code:
        say_none("requests", "`ktrdr-vm submit PROFILE --on PLACE` sends one")
    return code


def _show_table(rows: list[tuple[str, RequestState]]) -> None:
    from ktrdr_vm.report.escape import escape_line

    lines = [("REQUEST", "INSTANCE", "PLACE", "STATE", "TRY", "NODE", "RESULT", "WHY")]
    for name, one in rows:
        attempt = str(one.attempt or "")
        lines.append((one.request_id, one.instance_id, name, one.state, attempt, one.node, one.outcome, one.why))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo(
            escape_line(
                "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip(), limit=400
            )
        )


@click.command()
@click.argument("request")
@click.option("--json", "as_json", is_flag=True, help="Print states and events as JSON lines to standard output.")
def watch(request: str, as_json: bool) -> int:
    """Follow REQUEST (an id, or an instance_id) to its end, and return its exit code. An interrupt ends the command,
    not the run."""
    from ktrdr_vm.cli.elsewhere import find_entry, note, opened, watch_to_end
    from ktrdr_vm.places.model import find_place

    entry = find_entry(request)
    try:
        with opened(find_place(entry.place)) as far:
            return watch_to_end(far, entry.request_id, as_json=as_json).exit_code
    except KeyboardInterrupt:
        note(
            f"the run goes on; `ktrdr-vm watch {entry.request_id}` follows it, `ktrdr-vm cancel {entry.request_id}`"
            " stops it"
        )
        raise


@click.command()
@click.argument("requests", nargs=-1, required=True)
@json_option
def cancel(requests: tuple[str, ...], as_json: bool) -> None:
    """Cancel REQUESTS: one that waits never begins, one that runs destroys its VM first. Its evidence is kept."""
    from ktrdr_vm.cli.elsewhere import find_entries, opened
    from ktrdr_vm.cli.output import echo_json

    states = []
    for place, entries in find_entries(requests):
        names = [entry.request_id for entry in entries]
        with opened(place) as far:
            far.cancel(*names)
            states += far.states(names)
    if as_json:
        echo_json([state.to_json() for state in states])
    for state in () if as_json else states:
        click.echo(f"{state.request_id}  {state.state}")


@click.command()
@click.argument("requests", nargs=-1, required=True)
@json_option
def fetch(requests: tuple[str, ...], as_json: bool) -> int:
    """Fetch the run directories and commits of REQUESTS that have ended. The exit code is the highest of their runs."""
    from ktrdr_vm.cli.elsewhere import fetch_and_show, find_entries, opened

    code = 0
    for place, entries in find_entries(requests):
        with opened(place) as far:
            # One question for all of a place; a request that it does not know is asked for, and refused, by itself.
            states = {one.request_id: one for one in far.states([entry.request_id for entry in entries])}
            for entry in entries:
                code = max(code, fetch_and_show(far, entry, as_json=as_json, state=states.get(entry.request_id)))
    return code
