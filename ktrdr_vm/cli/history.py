"""`ktrdr-vm runs`: the history of runs and its measures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import complete_instance, json_option

if TYPE_CHECKING:
    from ktrdr_vm.report.history import History


@click.command()
@click.argument("instance_id", required=False, shell_complete=complete_instance)
@click.option("--branch", default="", metavar="NAME", help="Only runs whose base is this branch.")
@click.option("--profile", default="", metavar="NAME", help="Only runs of the profile of this name.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with trends to this file. It needs no network.",
)
@json_option
def runs(instance_id: str | None, branch: str, profile: str, html: Path | None, as_json: bool) -> None:
    """Show the runs that are kept, and what follows from them: first runs that pass, time to verdict, escalations,
    flaky tasks.

    With INSTANCE_ID only the runs of that instance.
    """
    from ktrdr_vm.cli.output import echo_json, say_none
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.evidence.history import read_rows
    from ktrdr_vm.host.owner import write_as_owner
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.report.history import make_history
    from ktrdr_vm.report.history_html import render_history

    name = parse_instance_id(instance_id).instance_id if instance_id else ""
    rows, unread = read_rows(find_home(), instance_id=name, branch=branch, profile=profile)
    history = make_history(rows)
    if html is not None:
        chosen = [text for text in (name, branch and f"branch {branch}", profile and f"profile {profile}") if text]
        try:
            write_as_owner(html, render_history(history, ", ".join(chosen) or "all").encode())
        except OSError as error:
            raise UsageError(
                f"cannot write: {error.strerror}", where=str(html), hint="name a file in a folder that you may write to"
            ) from None
    if as_json:
        echo_json({**history.to_json(), "unread": unread})
    else:
        _show(history)
        if not history.rows:
            say_none("runs", "`ktrdr-vm apply PROFILE` records one")
    if unread:
        click.echo(
            f"note: {len(unread)} runs have no report that can be read: they are active, were killed, or were changed",
            err=True,
        )
    if html is not None and not as_json:
        click.echo(f"page     {html}")


def _show(history: History) -> None:
    from ktrdr_vm.report.escape import escape_line
    from ktrdr_vm.report.history_html import format_answers, format_seconds, format_share

    measures = history.measures
    passed = f"{measures.first_runs_passed} of {measures.first_runs}"
    click.echo(f"first runs that pass      {format_share(measures.first_share):<12}  {passed}")
    click.echo(
        f"time to verdict           {format_seconds(measures.verdict_s):<12}  median of runs that passed or failed"
    )
    click.echo(f"escalations not approved  {format_share(measures.noise):<12}  {format_answers(measures.escalations)}")
    for task in history.flaky:
        click.echo(
            escape_line(
                f"flaky     {task.gate}: {task.name}: failed in {task.failures} of {task.judged} runs of commit"
                f" {task.commit[:12]}"
            )
        )
    for run in reversed(history.rows):
        first = "  first" if run.first else ""
        where = f"{run.instance_id}  {run.run_id}  {run.profile}  {run.branch or '-'} {run.commit[:12]}"
        click.echo(escape_line(f"{run.outcome:<11} {format_seconds(run.duration_s):>12}  {where}{first}"))
        if run.gates:
            gates = ", ".join(f"{gate.title} {gate.outcome} {format_seconds(gate.duration_s)}" for gate in run.gates)
            click.echo(escape_line(f"            gates: {gates}"))
        if run.new_destinations:
            click.echo(escape_line(f"            new destinations: {', '.join(run.new_destinations)}"))
        if sum(run.escalations.values()):
            click.echo(f"            escalations: {format_answers(run.escalations)}")
