"""`list`, `status`, `destroy`, `gc`: the instances of this host."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from ktrdr_vm.cli.options import complete_instance, instance_argument, json_option

if TYPE_CHECKING:
    from ktrdr_vm.monitoring.overview import Row


@click.command("list")
@click.option("--watch", is_flag=True, help="Repeat every two seconds, until interrupted.")
@click.option("--on", "place_name", metavar="PLACE", help="The instances at a place of places.yaml instead.")
@json_option
def list_(watch: bool, place_name: str | None, as_json: bool) -> None:
    """List the instances of this host, found by their journals and by their objects on the host."""
    import time

    if place_name is not None:
        _list_elsewhere(place_name, as_json)
        return
    from ktrdr_vm.cli.output import echo_json, say_none
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.monitoring.overview import list_rows

    home, libvirt = find_home(), Libvirt()
    while True:
        rows = list_rows(home, libvirt)
        if watch and not as_json:
            click.clear()
        if as_json:
            echo_json([row.to_json() for row in rows])
        elif rows:
            _show_table(rows)
        else:
            say_none("instances", "`ktrdr-vm apply PROFILE` creates one, and `ktrdr-vm init` writes a first profile")
        if not watch:
            return
        time.sleep(2)


def _list_elsewhere(place_name: str, as_json: bool) -> None:
    from ktrdr_vm.cli.elsewhere import opened
    from ktrdr_vm.cli.output import echo_json, say_none
    from ktrdr_vm.places.model import find_place
    from ktrdr_vm.report.escape import escape_line

    with opened(find_place(place_name)) as far:
        rows = far.list_instances()
    if as_json:
        echo_json(rows)
    elif not rows:
        say_none("instances", f"`ktrdr-vm apply --on {place_name} PROFILE` creates one there")
    for row in () if as_json else rows:
        words = [str(row.get(name) or "") for name in ("instance_id", "state", "mode", "note")]
        click.echo(escape_line("  ".join(words).rstrip(), limit=400))


def _show_table(rows: list[Row]) -> None:
    """Print the rows with aligned columns, and each note in a separate line."""
    from ktrdr_vm.cli.output import say
    from ktrdr_vm.report.escape import escape_line
    from ktrdr_vm.report.summary import format_bytes, format_duration

    lines = [("INSTANCE", "STATE", "MODE", "AGE", "GATES", "MEMORY", "DISK", "DENIED", "ASKS")]
    for row in rows:
        lines.append(
            (
                row.found.instance_id,
                row.found.state,
                row.found.mode,
                format_duration(row.age) if row.age is not None else "",
                escape_line(row.gates, limit=30),
                format_bytes(row.memory) if row.memory else "",
                format_bytes(row.disk),
                str(row.denials or ""),
                ",".join(row.pending),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for number, line in enumerate(lines):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
        if number and rows[number - 1].found.note:
            say(f"    {rows[number - 1].found.note}")


@click.command()
@instance_argument
@json_option
def status(instance_id: str, as_json: bool) -> int:
    """Verify each resource of INSTANCE_ID against its plan. Exit code 4 if one differs."""
    from dataclasses import asdict

    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.egress.revision import read_revision

    loaded = open_instance(instance_id).load()
    rows, revision = loaded.status(), read_revision(loaded.paths.guard)
    loaded.close()
    wrong = [row for row in rows if not row.exists or row.differences]
    if as_json:
        echo_json(
            {
                "instance_id": instance_id,
                "ok": not wrong,
                "revision": revision,
                "resources": [asdict(row) for row in rows],
            }
        )
    else:
        for row in rows:
            word = "missing" if not row.exists else "differs" if row.differences else "ok"
            say(f"{word:<8} {row.kind:<9} {row.name}{'  ' + '; '.join(row.differences) if row.differences else ''}")
        if revision:
            say(f"revision {revision}")
    return 4 if wrong else 0


@click.command()
@click.argument("instance_ids", nargs=-1, required=True, shell_complete=complete_instance)
@click.option("--yes", is_flag=True, help="Destroy interactive instances without a confirmation.")
@click.option("--force", is_flag=True, help="End a run of the instance first, as Ctrl-C would, and wait for it.")
@json_option
def destroy(instance_ids: tuple[str, ...], yes: bool, force: bool, as_json: bool) -> int:
    """Destroy instances and check that no resource is left. An instance that does not exist is no error."""
    from ktrdr_vm.cli.output import echo_json, show_error
    from ktrdr_vm.cli.progress import show_resource
    from ktrdr_vm.errors import KtrdrError, UsageError
    from ktrdr_vm.host.journal import end_holder
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.instance.instance import Instance, require_root

    identities = [parse_instance_id(instance_id) for instance_id in instance_ids]
    require_root()
    home, libvirt = find_home(), Libvirt()
    instances = [Instance(home, identity, libvirt) for identity in identities]
    # All confirmations are collected before the first instance is destroyed.
    for instance in () if yes else instances:
        if instance.find_mode() == "interactive":
            name = instance.identity.instance_id
            if not sys.stdin.isatty():
                raise UsageError(
                    f"{name} is interactive, and its disk would be deleted: this must be confirmed, and there is no"
                    " terminal",
                    where="ktrdr-vm destroy",
                    hint="confirm it with --yes",
                )
            click.confirm(f"{name} is interactive, and its disk will be deleted. Destroy it?", abort=True, err=True)
    rows: list[dict[str, Any]] = []
    for instance in instances:
        row: dict[str, Any] = {
            "instance_id": instance.identity.instance_id,
            "exit_code": 0,
            "residue": [],
            "message": "",
            "hint": "",
        }
        rows.append(row)
        try:
            if force:
                end_holder(home.lock(instance.identity.instance_id))
            with instance.locked():
                instance.destroy(notify=show_resource)
            if not as_json:
                with contextlib.suppress(OSError):  # the reader closed the stream; the others are destroyed too
                    click.echo(f"{instance.identity.instance_id}: residue: none")
        except KtrdrError as error:
            show_error(error)
            row |= {
                "exit_code": error.exit_code,
                "residue": list(getattr(error, "left", ())),
                "message": str(error),
                "hint": error.hint,
            }
    if as_json:
        echo_json(rows)
    codes = {row["exit_code"] for row in rows}
    return next((code for code in (5, 4) if code in codes), max(codes))


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option(
    "--owner",
    metavar="slurm:ID",
    help="Remove only the instances that this job created and that outlived it, and files that nobody holds.",
)
@json_option
def gc(dry_run: bool, owner: str | None, as_json: bool) -> int:
    """Remove resources left by crashed runs, expired instances, old evidence, old requests and unused templates.

    Interactive instances that have not expired, and instances of running runs, are kept.
    """
    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.host.job import parse_job
    from ktrdr_vm.host.journal import list_journals
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.host.run_removal import collect_runs
    from ktrdr_vm.instance.garbage import collect_garbage, collect_job
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.places.retention import collect_requests
    from ktrdr_vm.places.spool import Spool
    from ktrdr_vm.templates.store import collect_templates

    require_root()
    home = find_home()
    if owner is not None:
        rows = collect_job(home, Libvirt(), parse_job(owner), dry_run=dry_run)
    else:
        rows = collect_garbage(home, Libvirt(), dry_run=dry_run)
        rows += collect_runs(home, dry_run=dry_run)
        rows += collect_requests(Spool(home.spool), dry_run=dry_run)
        rows += collect_templates(home, {journal.template for journal in list_journals(home)}, dry_run=dry_run)
    if as_json:
        echo_json(rows)
    else:
        for row in rows:
            say(f"{row['action']:<13} {row['instance_id']}  {row['reason']}")
        if not rows:
            click.echo("nothing to remove", err=True)
    return 5 if any(row["action"] == "failed" for row in rows) else 0
