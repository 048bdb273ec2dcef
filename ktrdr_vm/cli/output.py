"""The output of commands: errors with their hint, and JSON documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ktrdr_vm.guest.commits import Returned, ReturnedRef


def show_error(error: Exception) -> None:
    """Print what happened, where, and what to do next; text of the guest is escaped."""
    from ktrdr_vm.report.escape import escape

    hint = getattr(error, "hint", "")
    for line in str(error).splitlines() or [""]:
        click.echo(f"ktrdr-vm: {escape(line)}", err=True)
    if hint:
        click.echo(f"  next: {escape(hint)}", err=True)


def say(text: str) -> None:
    """Print one line to standard output, with control characters escaped."""
    from ktrdr_vm.report.escape import escape

    click.echo(escape(text))


def say_none(what: str, then: str) -> None:
    """Say on standard error that a list is empty, and what puts something into it."""
    click.echo(f"no {what}\n  next: {then}", err=True)


def echo_json(value: object) -> None:
    """Print one document to standard output."""
    import json

    # ASCII, so that it contains no control sequences of a terminal.
    click.echo(json.dumps(value, indent=2))


def show_refs(returned: Sequence[ReturnedRef], *, as_json: bool) -> None:
    """Print the refs that were fetched."""
    from dataclasses import asdict

    if as_json:
        echo_json([asdict(one) for one in returned])
    for one in () if as_json else returned:
        click.echo(f"{one.commit[:12]}  {one.ref}  {len(one.changed)} paths changed")
    if not returned:
        click.echo("nothing new", err=True)


def show_returned(came: Returned, *, as_json: bool) -> None:
    """Print the refs, and what the guest says that it has besides."""
    show_refs(came.refs, as_json=as_json)
    if left := came.describe_left():
        click.echo(f"left behind in the guest: {left}", err=True)
