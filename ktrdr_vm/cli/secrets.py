"""`secrets`: lists, rotates and revokes the secrets of a running instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import instance_argument, json_option

if TYPE_CHECKING:
    from ktrdr_vm.instance.loaded import LoadedInstance
    from ktrdr_vm.instance.resources.base import Resource


@click.group()
def secrets() -> None:
    """List, rotate and revoke the secrets of an instance. Values are never shown."""


@secrets.command("list")
@instance_argument
@click.argument("name", required=False)
@json_option
def list_(instance_id: str, name: str | None, as_json: bool) -> None:
    """List the secrets of INSTANCE_ID, or the secret NAME: its path or its host, and whether it is present."""
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.report.escape import escape_line

    loaded = open_instance(instance_id).load()
    entries = {entry.name: entry for entry in loaded.plan.profile.secrets}
    rows = [
        {
            "name": one.name,
            "path": entries[one.name].path,
            "seconds": entries[one.name].ttl,
            "host": broker.host if (broker := entries[one.name].broker) else "",
            "present": one.exists(),
        }
        for one in _find(loaded, name)
    ]
    loaded.close()
    if as_json:
        echo_json(rows)
    for row in () if as_json else rows:
        where = f"held by the guard, for {row['host']}" if row["host"] else f"{row['path']}  for {row['seconds']} s"
        click.echo(f"{'present' if row['present'] else 'gone':<8} {escape_line(str(row['name'])):<30} {where}")


@secrets.command()
@instance_argument
@click.argument("name", required=False)
def rotate(instance_id: str, name: str | None) -> None:
    """Read the secret NAME of INSTANCE_ID, or all secrets, from the source again and replace it. Its time to live
    starts again."""
    from ktrdr_vm.cli.options import open_instance

    instance = open_instance(instance_id)
    with instance.locked():
        loaded = instance.load()
        found = _find(loaded, name)
        for one in found:
            one.create()
    loaded.close()
    for one in found:
        click.echo(f"{one.name}: renewed", err=True)


@secrets.command()
@instance_argument
@click.argument("name", required=False)
def revoke(instance_id: str, name: str | None) -> None:
    """Remove the secret NAME, or all secrets, from INSTANCE_ID.

    The guest may have kept a copy, so revoke the secret at its issuer as well.
    """
    from ktrdr_vm.cli.options import open_instance

    instance = open_instance(instance_id)
    with instance.locked():
        loaded = instance.load()
        found = _find(loaded, name)
        for one in found:
            one.remove()
            click.echo(
                f"{one.name}: removed; the guest may have kept a copy, so end it at its source as well", err=True
            )
    loaded.close()


def _find(loaded: LoadedInstance, name: str | None) -> list[Resource]:
    """The instance's secrets, or the one of that name."""
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.instance.secret_sources import read_source

    loaded.target.refuse_suspended()
    found = [one for one in loaded.open_secrets(read_source) if name in (None, one.name)]
    if name is not None and not found:
        raise UsageError(
            f"there is no secret {name}", where=loaded.instance_id, hint="`ktrdr-vm secrets list` shows them"
        )
    return found
