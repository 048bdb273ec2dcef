"""`doctor`: the requirements on this host, and how to meet them."""

from __future__ import annotations

import os

import click

from ktrdr_vm.cli.options import json_option
from ktrdr_vm.cli.world import ask_in_world


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check this host. Exit code 3 if a requirement of every run is missing."""
    from dataclasses import asdict

    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.monitoring.check import Check
    from ktrdr_vm.monitoring.doctor import check_host
    from ktrdr_vm.monitoring.doctor_world import check_for_world

    home = find_home()
    checks = check_for_world(home.root) if os.geteuid() != 0 else []
    if not any(check.state == "missing" for check in checks):
        checks += [Check(**found) for found in ask_in_world(lambda: [asdict(check) for check in check_host(home)])]
    if as_json:
        echo_json([asdict(check) for check in checks])
    else:
        for check in checks:
            say(f"{check.state:<8} {check.name:<23} {check.detail}")
            if check.fix:
                say(f"{'':<8} {'':<23} → {check.fix}")
    return 3 if any(check.state == "missing" for check in checks) else 0
