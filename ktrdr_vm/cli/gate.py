"""`gate`: runs playbooks in a running instance."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from ktrdr_vm.cli.options import expect_option, folder, instance_argument, json_option


@click.command()
@instance_argument
@click.argument("playbooks", nargs=-1, required=True)
@click.option(
    "--var", "variables", multiple=True, metavar="NAME=VALUE", help="Set a variable of the playbook. Repeatable."
)
@click.option("--workspace", type=folder, default=Path(), help="The folder that is searched first for playbooks.")
@expect_option
@json_option
def gate(
    instance_id: str,
    playbooks: tuple[str, ...],
    variables: tuple[str, ...],
    workspace: Path,
    expect: str,
    as_json: bool,
) -> int:
    """Run PLAYBOOKS, each a gate name or a path, against INSTANCE_ID. Exit code 1 if one did not pass."""
    from dataclasses import asdict

    from ktrdr_vm.cli.options import open_instance, warn_of_guard
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.cli.progress import show_gate, show_gate_event
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.run.gates import run_gates

    instance = open_instance(instance_id)
    root = workspace.resolve()
    extra: dict[str, str] = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{variable!r} does not set a variable", hint="use --var name=value")
        extra[name] = value
    warn = partial(click.echo, err=True)
    loaded = instance.load()
    warn_of_guard(instance)
    results = run_gates(
        loaded, playbooks, root, trusted=True, variables=extra, warn=warn, on_event=show_gate_event, expect=expect
    )
    loaded.close()
    if as_json:
        echo_json([asdict(result) for result in results])
    for result in results:
        show_gate(result, sys.stderr)
    return 0 if all(result.outcome == "passed" for result in results) else 1
