"""`ktrdr-vm apply`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import json_option, plan_options, profile_argument, send_secret_option

if TYPE_CHECKING:
    from ktrdr_vm.inputs.resolve import Gathered
    from ktrdr_vm.report.model import RunReport


@click.command()
@profile_argument
@click.option("--continue", "continued", metavar="ID", help="Continue the run of ID that stopped at an escalation.")
@click.option(
    "--from-run",
    metavar="ID[/RUN]",
    help="Create an interactive instance from the profile and the judged commit of a run.",
)
@plan_options
@click.option(
    "--gate", "gates", multiple=True, metavar="NAME", help="Run these gates instead of the profile's. Repeatable."
)
@click.option(
    "--keep",
    type=click.Choice(["never", "on-failure", "always"]),
    default="never",
    help="Whether to keep a sandbox after its run. Interactive instances are always kept.",
)
@click.option("--cold", is_flag=True, help="Boot from power-on instead of forking a template.")
@click.option("--restart", is_flag=True, help="Restart an interactive instance if a change of its profile requires it.")
@click.option(
    "--accept-changes",
    is_flag=True,
    help="Accept new destinations of secrets in the profile of this branch.",
)
@click.option(
    "--from",
    "source",
    default="",
    metavar="ID@NAME",
    help="Start from a snapshot of another instance, including its workspace.",
)
@click.option("--on", "place_name", metavar="PLACE", help="Run at a place of places.yaml: submit, watch and fetch.")
@send_secret_option
@json_option
def apply(
    profile: Path | None,
    continued: str | None,
    from_run: str | None,
    instance_id: str | None,
    workspace: Path | None,
    gates: tuple[str, ...],
    keep: str,
    cold: bool,
    restart: bool,
    accept_changes: bool,
    source: str,
    place_name: str | None,
    sent_secrets: tuple[str, ...],
    as_json: bool,
) -> int:
    """Create the VM of PROFILE, by default ktrdr.yaml, run its workload and gates, collect the evidence, destroy the
    VM, and check that nothing is left."""
    if place_name is not None:
        from ktrdr_vm.cli.apply_on import apply_on, refuse_options
        from ktrdr_vm.cli.elsewhere import make_asked

        refuse_options(continued=continued, from_run=from_run, keep=keep != "never", restart=restart, source=source)
        asked = make_asked(
            profile, workspace, instance_id, gates, sent_secrets, cold=cold, accept_changes=accept_changes
        )
        return apply_on(place_name, asked, as_json=as_json)
    if sent_secrets:
        raise click.UsageError("--send-secret needs --on: a run here reads the sources of this host")
    from ktrdr_vm.cli.options import find_run
    from ktrdr_vm.cli.progress import TerminalListener
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.inputs.profile_file import find_profile
    from ktrdr_vm.inputs.resolve import gather
    from ktrdr_vm.instance.instance import Instance, require_root
    from ktrdr_vm.run.listener import Options
    from ktrdr_vm.run.run import Run

    require_root()
    home = find_home()
    if sum(one is not None for one in (profile, continued, from_run)) > 1:
        raise UsageError(
            "only one of PROFILE, --continue ID and --from-run ID is possible",
            where="ktrdr-vm apply",
            hint="`ktrdr-vm apply profile.yaml`",
        )
    stop = None
    options = Options(keep=keep, cold=cold, restart=restart, source=source)  # type: ignore[arg-type]
    if continued is not None:
        from ktrdr_vm.run.checkpoint import read_stop

        stop = read_stop(Instance(home, parse_instance_id(continued), Libvirt()))
        profile, workspace, instance_id, gates = Path(stop.profile), Path(stop.workspace), continued, stop.gates
        options = Options(keep=stop.keep, cold=stop.cold)
    if from_run is not None:
        from ktrdr_vm.inputs.from_run import gather_run

        name, _, run_id = from_run.partition("/")
        gathered = gather_run(find_run(name, run_id or "latest"), home=home, instance_id=instance_id)
    else:
        profile, workspace = find_profile(profile, workspace)
        gathered = gather(profile, home=home, workspace=workspace, instance_id=instance_id, gates=gates)
        if stop is None and not accept_changes:
            _accept(gathered, ask=sys.stdin.isatty() and not as_json)
    if stop is not None and gathered.plan.digest != stop.plan_digest:
        raise UsageError(
            "the profile, its playbooks or the commit of the workspace changed since the run stopped",
            where=str(profile),
            hint=f"restore them, or `ktrdr-vm destroy {instance_id}` and apply again",
        )
    listener = TerminalListener(gathered)
    with listener:
        report = Run(gathered, home, Libvirt(), options, listener, stop=stop).execute()
    _show(report, find_run(report.instance_id, report.run_id), as_json=as_json)
    return report.exit_code


def _show(report: RunReport, directory: Path, *, as_json: bool) -> None:
    from ktrdr_vm.cli.progress import show_report
    from ktrdr_vm.report.json import render_report_json

    try:
        if as_json:
            click.echo(render_report_json(report), nl=False)
            sys.stdout.flush()
        show_report(report, directory, sys.stderr)
    except OSError:
        # The reader has closed the stream; the exit code still holds the result.
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _accept(gathered: Gathered, *, ask: bool) -> None:
    """Ask for a confirmation at a terminal; refuse without one."""
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.inputs.trusted import require_accepted
    from ktrdr_vm.report.escape import escape

    try:
        require_accepted(gathered.beyond, gathered.loaded.source)
    except UsageError:
        if not ask:
            raise
        for one in gathered.beyond:
            click.echo(escape(f"  ! not on the trusted branch: {one.text}"), err=True)
        if not click.confirm(
            "The profile of this branch allows destinations of secrets that the trusted branch does not. Continue?",
            err=True,
        ):
            raise
