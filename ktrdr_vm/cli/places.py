"""`places`: the places of a person, and what is missing there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ktrdr_vm.cli.options import json_option

if TYPE_CHECKING:
    from ktrdr_vm.places.model import Place

_LEAST_FREE = 20 * 1024**3
_MOST_SKEW = 30.0


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def places(context: click.Context, as_json: bool) -> None:
    """List the places of places.yaml, or check one."""
    from dataclasses import asdict

    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.places.model import read_places

    if context.invoked_subcommand is not None:
        return
    found = read_places()
    if as_json:
        echo_json([asdict(one) for one in found.values()])
    for one in () if as_json else found.values():
        say(f"{one.name:<16} {one.kind:<6} {one.host or 'this host'}{'  ' + one.spool if one.spool else ''}")


@places.command()
@click.argument("place")
@json_option
def check(place: str, as_json: bool) -> int:
    """Connect to PLACE and show its version, its accelerator, its free disk space and its clock. Exit code 3 if
    something is missing."""
    from ktrdr_vm.cli.elsewhere import opened
    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.places.model import find_place

    found = find_place(place)
    with opened(found) as far:
        facts = far.facts()
        lacking = far.find_missing()
    rows = [*find_faults(found, facts), *(("missing", name, text) for name, text in lacking.items())]
    if as_json:
        echo_json(
            {
                "place": place,
                "facts": facts,
                "checks": [{"state": state, "name": name, "detail": text} for state, name, text in rows],
            }
        )
    for state, name, text in () if as_json else rows:
        say(f"{state:<8} {name:<10} {text}")
    return 3 if any(state == "missing" for state, _, _ in rows) else 0


@places.command()
@click.argument("place")
def setup(place: str) -> int:
    """Show what PLACE lacks, with the commands that add it, and what `doctor` finds there. Nothing is changed.

    Exit code 3 if something is missing.
    """
    from importlib.metadata import version

    from ktrdr_vm.cli.elsewhere import opened
    from ktrdr_vm.cli.output import say, show_error
    from ktrdr_vm.errors import KtrdrError
    from ktrdr_vm.places.model import find_place, find_places_file
    from ktrdr_vm.places.reach import Reach, can_log_in

    found = find_place(place)
    if found.host:
        can, said = can_log_in(found)
        text = "without a password" if can else said or "it printed text, or ended with an error"
        say(f"{'ok' if can else 'missing':<8} login      {text}")
        if not can:
            click.echo(
                f"  next: ssh-copy-id {found.host}; `ssh {found.host} true` must ask nothing and print nothing",
                err=True,
            )
            return 3
    try:
        with opened(found) as far:
            facts = far.facts()
            lacking = far.find_missing()
    except KtrdrError as error:
        say(f"{'missing':<8} program    ktrdr-vm {version('ktrdr-vm')} as {found.program}")
        show_error(error)
        click.echo(
            "  next: install this release there, as docs/hosts.md shows; then name it as `program` in"
            f" {find_places_file()}",
            err=True,
        )
        return 3
    rows = [*find_faults(found, facts), *(("missing", name, text) for name, text in lacking.items())]
    for state, name, text in rows:
        say(f"{state:<8} {name:<10} {text}")
    missing = any(state == "missing" for state, _, _ in rows)
    if found.is_cluster:
        # Its nodes are not the host that answers.
        click.echo(
            "the nodes of a cluster: `srun ktrdr-vm doctor` on each partition; docs/places.md has the lines of"
            " slurm.conf",
            err=True,
        )
        return 3 if missing else 0
    return max(3 if missing else 0, Reach(found, "").show(["doctor"]))


def find_faults(place: Place, facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """State (ok, warning or missing), name and text of each check."""
    free, kvm = float(facts.get("free", 0)), facts.get("kvm") is True
    skew = abs(float(facts.get("time", 0)) - time.time())
    rows = [
        (
            "ok",
            "version",
            (
                f"{facts.get('version', '')} on {facts.get('node', '')}, {facts.get('system', '')}, user"
                f" {facts.get('user', '')}"
            ),
        ),
        (
            "ok" if free > _LEAST_FREE else "warning",
            "disk",
            f"{free / 1024**3:.0f} GiB free at {facts.get('home', '')}",
        ),
        ("ok" if skew < _MOST_SKEW else "warning", "clock", f"differs by {skew:.0f} s"),
    ]
    if place.spool:
        missing = facts.get("missing") or []
        rows.append(
            (
                "missing" if missing else "ok",
                "scheduler",
                f"not installed: {', '.join(missing)}" if missing else "sbatch answers here",
            )
        )
        rows.append(("ok", "spool", str(facts.get("spool", ""))))
        return rows
    emulator = str(facts.get("emulator", ""))
    rows.append(
        (
            "ok" if emulator else "missing",
            "emulator",
            emulator or "QEMU is not installed; `ktrdr-vm doctor` there says how",
        )
    )
    rows.append(
        (
            "ok" if kvm else "warning",
            "kvm",
            "/dev/kvm can be opened" if kvm else "/dev/kvm cannot be opened: runs are emulated, and slow",
        )
    )
    return rows
