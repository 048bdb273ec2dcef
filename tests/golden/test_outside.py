"""What scripts rely on: commands with their options, exit codes, and the shapes of the JSON documents. A change of it
is meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import click

from ktrdr_vm import errors
from ktrdr_vm.cli.main import cli
from ktrdr_vm.report import ledger_row
from ktrdr_vm.report.model import RunReport

Golden = Callable[[str, str], None]


def _commands(command: click.Command, words: str) -> Iterator[str]:
    for parameter in sorted(command.params, key=lambda one: (not isinstance(one, click.Argument), one.name or "")):
        names = "/".join((*parameter.opts, *parameter.secondary_opts))
        yield f"{words} {names}{' ...' if parameter.nargs == -1 or getattr(parameter, 'multiple', False) else ''}"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, f"{words} {name}")
    elif not command.params:
        yield words


def test_commands_and_options(golden: Golden) -> None:
    golden("outside/commands.txt", "\n".join(_commands(cli, "ktrdr-vm")) + "\n")


def test_exit_codes(golden: Golden) -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.KtrdrError)]
    golden(
        "outside/exit-codes.txt",
        "".join(f"{one.__name__} {one.exit_code}\n" for one in sorted(kinds, key=lambda one: one.__name__)),
    )


def _shape(kind: Any) -> Any:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {one.name: _shape(hints[one.name]) for one in fields(kind)}
    inner = [one for one in get_args(kind) if is_dataclass(one)]
    return _shape(inner[0]) if inner else str(kind)


def test_report(golden: Golden) -> None:
    golden("outside/report.json", json.dumps(_shape(RunReport), indent=1, sort_keys=True) + "\n")


def test_ledger(golden: Golden) -> None:
    words = {
        "kinds": sorted(ledger_row.KINDS),
        "verdicts": sorted(ledger_row.VERDICTS),
        "fields": sorted(ledger_row._known()),
    }
    golden("outside/ledger.json", json.dumps(words, indent=1) + "\n")
