"""The output of commands: errors with their hint, and JSON documents."""

from __future__ import annotations

import json

import click


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


def echo_json(value: object) -> None:
    """Print one document to standard output."""
    # ASCII, so that it contains no control sequences of a terminal.
    click.echo(json.dumps(value, indent=2))
