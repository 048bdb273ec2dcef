"""`doctor`: the requirements on this host, and how to meet them."""

from __future__ import annotations

import os

import click

from ktrdr_vm.cli.options import json_option
from ktrdr_vm.cli.world import ask_in_world


@click.command()
@click.option(
    "--benchmark",
    is_flag=True,
    help="Measure five figures of this host instead, with a few forks of the shipped image.",
)
@json_option
def doctor(benchmark: bool, as_json: bool) -> int:
    """Check this host. Exit code 3 if a requirement of every run is missing."""
    if benchmark:
        return _measure(as_json)
    from dataclasses import asdict

    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.monitoring.check import Check
    from ktrdr_vm.monitoring.doctor import check_host, check_packages
    from ktrdr_vm.monitoring.doctor_world import check_for_world

    home = find_home()
    checks = check_packages()
    if os.geteuid() != 0:
        checks += check_for_world(home.root)
    if os.geteuid() == 0 or not any(check.state == "missing" for check in checks):
        checks += [Check(**found) for found in ask_in_world(lambda: [asdict(check) for check in check_host(home)])]
    if as_json:
        echo_json([asdict(check) for check in checks])
    else:
        for check in checks:
            say(f"{check.state:<8} {check.name:<23} {check.detail}")
            if check.fix:
                say(f"{'':<8} {'':<23} → {check.fix}")
    return 3 if any(check.state == "missing" for check in checks) else 0


def _measure(as_json: bool) -> int:
    """In the world of a person without root, which this process enters before it starts threads."""
    from dataclasses import asdict

    from ktrdr_vm.api import enter_world
    from ktrdr_vm.cli.doctor_benchmark import measure
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.host.accelerator import find_accelerator

    enter_world()
    accelerator = find_accelerator(None)
    figures = measure(lambda text: click.echo(text, err=True))
    if as_json:
        echo_json({"accelerator": accelerator.name, "figures": [asdict(figure) for figure in figures]})
        return 0
    for figure in figures:
        click.echo(f"{figure.name:<30} {figure.value:8.3g} {figure.unit}")
    click.echo(f"with {accelerator.name}{f': {accelerator.reason}' if accelerator.reason else ''}", err=True)
    return 0
