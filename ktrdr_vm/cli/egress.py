"""`egress log`: the ledger, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from ktrdr_vm.cli.options import instance_argument, json_option


@click.group()
def egress() -> None:
    """Show what left an instance, and what was refused."""


@egress.command()
@instance_argument
@click.option("--denied", is_flag=True, help="Only what was refused.")
@json_option
def log(instance_id: str, denied: bool, as_json: bool) -> None:
    """Print the ledger of INSTANCE_ID: the living one, else that of its newest run."""
    from ktrdr_vm.cli.evidence import find_run
    from ktrdr_vm.egress.control import ask_guard
    from ktrdr_vm.errors import KtrdrError
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.plan.identity import parse_instance_id
    from ktrdr_vm.report.escape import escape_line

    paths = find_home().instance(parse_instance_id(instance_id).instance_id)
    if paths.ledger.exists():
        try:
            ask_guard(paths.guard, "flush")
        except KtrdrError as error:
            click.echo(f"ktrdr-vm: {error.message}; what it had written follows", err=True)
        path = paths.ledger
    else:
        path = find_run(instance_id, "latest") / "egress.jsonl"
    for row in _rows(path):
        if denied and row["verdict"] != "deny":
            continue
        if as_json:
            click.echo(json.dumps(row))
            continue
        destination = str(row.get("name") or row.get("address") or "-")
        if row.get("port"):
            destination += f":{row['port']}"
        count = f"  x{row['count']}" if int(str(row.get("count", 1))) > 1 else ""
        detail = row.get("message") or row.get("rule") or ""
        click.echo(escape_line(f"{row['time']}  {row['verdict']:<5}  {row['kind']:<5}  {destination}{count}  {detail}"))


def _rows(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
