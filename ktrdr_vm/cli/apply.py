"""`ktrdr-vm apply`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ktrdr_vm.cli.options import json_option, plan_options, profile_argument


@click.command()
@profile_argument
@plan_options
@click.option("--gate", "gates", multiple=True, metavar="NAME", help="Run these gates instead of the profile's. Repeatable.")
@click.option(
    "--keep",
    type=click.Choice(["never", "on-failure", "always"]),
    default="never",
    help="Whether a sandbox outlives its run. Interactive instances always do.",
)
@click.option("--cold", is_flag=True, help="Boot from power-on instead of forking a template.")
@click.option("--from", "source", default="", metavar="ID@NAME", help="Begin from a snapshot of another instance, with its workspace.")
@json_option
def apply(
    profile: Path, instance_id: str | None, workspace: Path, gates: tuple[str, ...], keep: str, cold: bool, source: str, as_json: bool
) -> int:
    """Make the sandbox of PROFILE, run its workload and gates, bring the evidence back, destroy it, prove that nothing is left."""
    from ktrdr_vm.cli.progress import TerminalListener, show_report
    from ktrdr_vm.gather import gather
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.instance import require_root
    from ktrdr_vm.listener import Options
    from ktrdr_vm.report.json import render_report_json
    from ktrdr_vm.run import Run

    require_root()
    home = find_home()
    gathered = gather(profile, home=home, workspace=workspace, instance_id=instance_id, gates=gates)
    listener = TerminalListener(gathered)
    with listener:
        report = Run(gathered, home, Libvirt(), Options(keep=keep, cold=cold, source=source), listener).execute()  # type: ignore[arg-type]
    directory = home.run(report.instance_id, report.run_id)
    try:
        if as_json:
            click.echo(render_report_json(report), nl=False)
            sys.stdout.flush()
        show_report(report, directory, sys.stderr)
    except OSError:
        # Nobody reads any more; the exit code still says how it ended.
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return report.exit_code
