"""What commands show: errors with their hint, and JSON documents."""

from __future__ import annotations

import json

import click


def show_error(error: Exception) -> None:
    """What, where, and what to do next; guest text in it is escaped."""
    from ktrdr_vm.report.escape import escape

    hint = getattr(error, "hint", "")
    for line in str(error).splitlines() or [""]:
        click.echo(f"ktrdr-vm: {escape(line)}", err=True)
    if hint:
        click.echo(f"  next: {escape(hint)}", err=True)


def say(text: str) -> None:
    """One line on standard output; what the guest or another program put into it does not act on a terminal."""
    from ktrdr_vm.report.escape import escape

    click.echo(escape(text))


def echo_json(value: object) -> None:
    """One document on standard output."""
    # ASCII, so that nothing in it acts on a terminal.
    click.echo(json.dumps(value, indent=2))
