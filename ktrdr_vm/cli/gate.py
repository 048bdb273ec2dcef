"""`gate`: playbooks against a running instance."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ktrdr_vm.cli.options import folder, instance_argument, json_option


@click.command()
@instance_argument
@click.argument("playbooks", nargs=-1, required=True)
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable that wins over the playbook's. Repeatable.")
@click.option("--workspace", type=folder, default=Path(), help="Where playbooks are looked for first.")
@json_option
def gate(instance_id: str, playbooks: tuple[str, ...], variables: tuple[str, ...], workspace: Path, as_json: bool) -> int:
    """Run PLAYBOOKS, by gate name or path, against INSTANCE_ID. Exit code 1 when one did not pass."""
    from dataclasses import asdict

    from ktrdr_vm.cli.access import warn_of_guard
    from ktrdr_vm.cli.main import echo_json
    from ktrdr_vm.cli.progress import show_gate, show_gate_event
    from ktrdr_vm.delivered import read_secrets
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.evidence import make_run_id
    from ktrdr_vm.gates.context import GateContext
    from ktrdr_vm.gates.load import load_playbook
    from ktrdr_vm.gates.runner import run_playbook
    from ktrdr_vm.gather import find_playbook
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.owner import find_owner
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.instance import Instance
    from ktrdr_vm.plan.identity import parse_instance_id
    from ktrdr_vm.report.mask import make_mask

    home = find_home()
    instance = Instance(home, parse_instance_id(instance_id), Libvirt())
    root = workspace.resolve()
    extra: dict[str, str] = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{variable!r} is no variable", hint="write --var name=value")
        extra[name] = value
    loaded = [(path := find_playbook(name, root, trusted=True), load_playbook(path)) for name in playbooks]
    # fetch brings files here; who typed the command owns them.
    artifacts = home.run(instance_id, f"gates-{make_run_id()}") / "artifacts"
    results = []
    with instance.locked():
        warn_of_guard(instance)
        guest = instance.connect()
        for path, playbook in loaded:
            context = GateContext(
                extra_vars={**dict(instance.plan.profile.vars), **extra},
                roots=(path.resolve().parent, root),
                environment=instance.environment(),
                artifacts=artifacts / playbook.name,
                owner=find_owner(),
                mask=make_mask(read_secrets(instance)),
                gate_timeout=instance.plan.profile.gate_timeout,
                on_event=show_gate_event,
            )
            results.append(run_playbook(playbook, guest, context))
    instance.close()
    if as_json:
        echo_json([asdict(result) for result in results])
    for result in results:
        show_gate(result, sys.stderr)
    return 0 if all(result.outcome == "passed" for result in results) else 1
