"""Commands that name an instance find it at its place: with `--on PLACE`, or by the records of the requests that were
sent from here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ktrdr_vm.places.book import Entry
    from ktrdr_vm.places.fetch import Fetched
    from ktrdr_vm.places.reach import Reach
    from ktrdr_vm.places.request_state import RequestState

Action = Callable[[click.Context, "Reach", "Entry | None"], "int | None"]
"""Acts at the place. Its exit code, or None if the command is to go on here, with what was fetched."""


_PLACE = "place_name"


def add_place_option(command: click.Command, words: tuple[str, ...]) -> None:
    """Give a command of the table below the option `--on`, and let it act at the place of its instance."""
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            add_place_option(inner, (*words, word))
        return
    name = " ".join(words)
    if name not in _ACTIONS or any("--on" in one.opts for one in command.params):
        return
    # In the context, not with the parameters of the command, which knows nothing of places.
    help_text = "A place of places.yaml. Default: where the instance is."
    option = click.Option(["--on", _PLACE], metavar="PLACE", expose_value=False, callback=_remember, help=help_text)
    command.params.append(option)
    invoke = command.invoke

    def find_and_invoke(ctx: click.Context) -> object:
        found = _find(ctx, ctx.meta.get(_PLACE))
        if found is not None and (code := _ACTIONS[name](ctx, *found)) is not None:
            return code
        return invoke(ctx)

    command.invoke = find_and_invoke  # type: ignore[method-assign]


def _remember(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    ctx.meta[_PLACE] = value


def _find(ctx: click.Context, place_name: str | None) -> tuple[Reach, Entry | None] | None:
    """The instance at its place; None if the command is about this host."""
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id

    home, name = find_home(), _find_instance_id(ctx)
    if place_name is None:
        # Nothing was ever submitted from here, which is the usual case, or it is here.
        if (
            not name
            or not home.submitted.is_dir()
            or home.instance(parse_instance_id(name).instance_id).journal.exists()
        ):
            return None
    elif not name:
        raise click.UsageError("--on needs the id of an instance", ctx)
    # Imported late: most hosts know no place, and a command such as `exec` is to begin at once.
    from ktrdr_vm.places.book import Book

    entries = [one for one in Book(home).list() if one.instance_id == name and place_name in (None, one.place)]
    entry = entries[-1] if entries else None
    if place_name is None and (entry is None or _is_known_here(ctx, entry)):
        return None
    from ktrdr_vm.places.model import find_place
    from ktrdr_vm.places.reach import Reach

    place = find_place(place_name or (entry.place if entry else ""))
    return None if place.is_local else (Reach(place, parse_instance_id(name).instance_id), entry)


def _is_known_here(ctx: click.Context, entry: Entry) -> bool:
    """True for a request whose results were fetched, and for an older run that is named: its evidence is here."""
    return ctx.command.name in ("report", "events", "logs", "bundle") and (
        bool(entry.accepted) or ctx.params.get("run_id", "latest") != "latest"
    )


def _find_instance_id(ctx: click.Context) -> str:
    from ktrdr_vm.cli.connect import find_remote

    if "source" in ctx.params and "destination" in ctx.params:
        return find_remote(ctx.params["source"], ctx.params["destination"])
    return str(ctx.params.get("instance_id") or "")


def render_words(ctx: click.Context) -> list[str]:
    """The words of a command, made from what was parsed: options that were given, then `--` and the arguments."""
    names: list[str] = []
    above: click.Context | None = ctx
    while above is not None and above.parent is not None:
        names.insert(0, above.info_name or "")
        above = above.parent
    options: list[str] = []
    arguments: list[str] = []
    for one in ctx.command.params:
        value: Any = ctx.params.get(one.name or "")
        if isinstance(one, click.Argument):
            arguments += [str(word) for word in value] if one.nargs != 1 else [] if value is None else [str(value)]
        elif one.expose_value and isinstance(one, click.Option) and _was_given(ctx, one):
            name = next(word for word in one.opts if word.startswith("--"))
            for word in value if one.multiple and isinstance(value, tuple) else (value,):
                options += [name] if one.is_flag else [f"{name}={word}"]
    return [*names, *options, "--", *arguments]


def _was_given(ctx: click.Context, option: click.Option) -> bool:
    source = ctx.get_parameter_source(option.name or "")
    return source is click.core.ParameterSource.COMMANDLINE and ctx.params.get(option.name or "") not in (None, False)


# -- actions ----------------------------------------------------------------------------------------------------------


def _connect(ctx: click.Context, reach: Reach, _entry: Entry | None) -> int | None:
    """The streams of this command are those of the one at the place, byte for byte."""
    from ktrdr_vm.cli.connect import replace_process

    wants_terminal = bool(ctx.params.get("tty")) or (
        ctx.command.name in ("ssh", "console") and not ctx.params.get("command")
    )
    replace_process(reach.make_words(render_words(ctx), tty=wants_terminal and sys.stdin.isatty()))


def _show(ctx: click.Context, reach: Reach, _entry: Entry | None) -> int | None:
    return reach.show(render_words(ctx))


def _copy(ctx: click.Context, reach: Reach, _entry: Entry | None) -> int | None:
    from ktrdr_vm.cli.connect import check_copy

    source, destination = ctx.params["source"], ctx.params["destination"]
    check_copy(source, destination)
    return reach.copy(source, destination)


def _forward(ctx: click.Context, reach: Reach, _entry: Entry | None) -> int | None:
    from ktrdr_vm.cli.connect import parse_forward

    reach.forward([parse_forward(text) for text in ctx.params["ports"]], lambda text: click.echo(text, err=True))
    return 0


def _read_evidence(ctx: click.Context, reach: Reach, entry: Entry | None) -> int | None:
    """Fetch the results of a request that has ended, and go on with them here. One that runs is asked there."""
    from ktrdr_vm.cli.elsewhere import note
    from ktrdr_vm.errors import HostError, UsageError
    from ktrdr_vm.host import runs
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.book import Book

    if entry is None:
        if ctx.command.name == "bundle":
            raise UsageError(
                "the run was not submitted from here, so its repository is not known",
                where=reach.place.name,
                hint=f"log in to that host, and call `ktrdr-vm bundle {reach.instance_id}` there",
            )
        return _show(ctx, reach, entry)
    try:
        state = _fetch_ended(reach, entry)
    except HostError as error:
        if ctx.meta.get(_PLACE) or not runs.list_runs(find_home(), reach.instance_id):
            raise
        note(f"{error}; this is the newest run that was fetched")
        return None
    if state.has_ended:
        # Of this request, and not the newest of the instance: another place, or this host, may have run it since.
        fetched = Book(find_home()).read(entry.request_id).run_id
        if ctx.params.get("run_id") == "latest" and fetched:
            ctx.params["run_id"] = fetched
        return None
    if ctx.command.name in ("events", "logs") and state.state == "running":
        return _show(ctx, reach, entry)
    raise UsageError(
        f"the request is {state.state}",
        where=entry.request_id,
        hint=f"`ktrdr-vm watch {entry.request_id}` follows it to its end; `--run` names a run that was fetched before",
    )


def _fetch_ended(reach: Reach, entry: Entry) -> RequestState:
    """The state of a request. The results of one that has ended are here afterwards; UsageError if it has none."""
    from ktrdr_vm.cli.elsewhere import note, opened
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.fetch import fetch

    with opened(reach.place) as far:
        state = far.state(entry.request_id)
        if state.has_ended and not entry.accepted:
            _require_run(fetch(far, find_home(), entry, note=note), entry)
        return state


def _require_run(fetched: Fetched, entry: Entry) -> None:
    from ktrdr_vm.errors import UsageError

    if fetched.run is None:
        raise UsageError(
            f"the request ended without a run{f': {fetched.message}' if fetched.message else ''}",
            where=entry.request_id,
            hint=fetched.hint or "submit it again",
        )


def _pull(ctx: click.Context, reach: Reach, entry: Entry | None) -> int | None:
    """The commits of a request that has ended come with its results; those of an instance that runs from its guest."""
    from ktrdr_vm.cli.elsewhere import note, opened
    from ktrdr_vm.cli.output import show_refs, show_returned
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.host.repository import find_repository
    from ktrdr_vm.places.fetch import fetch, take_live_commits

    as_json = ctx.params["as_json"]
    if entry is not None:
        with opened(reach.place) as far:
            if far.state(entry.request_id).has_ended:
                fetched = fetch(far, find_home(), entry, note=note)
                _require_run(fetched, entry)
                show_refs(fetched.refs, as_json=as_json)
                return 0
    workspace = Path(entry.workspace) if entry and entry.workspace else Path.cwd()
    came = take_live_commits(reach, find_repository(workspace), entry.commit if entry else "")
    show_returned(came, as_json=as_json)
    return 0


_ACTIONS: dict[str, Action] = {
    "ssh": _connect,
    "exec": _connect,
    "console": _connect,
    "attach": _show,
    "status": _show,
    "escalations list": _show,
    "escalations show": _show,
    "escalations approve": _show,
    "escalations deny": _show,
    "escalations revoke": _show,
    "report": _read_evidence,
    "events": _read_evidence,
    "logs": _read_evidence,
    "bundle": _read_evidence,
    "cp": _copy,
    "forward": _forward,
    "pull": _pull,
}
