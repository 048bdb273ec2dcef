"""`branch`: copies of a running instance, with its memory and processes."""

from __future__ import annotations

import click

from ktrdr_vm.cli.options import expect_option, instance_argument, json_option


@click.command()
@instance_argument
@click.argument("new")
@click.option("--count", type=click.IntRange(1, 64), default=1, help="The number of branches: NEW, or NEW-1 to NEW-N.")
@expect_option
@json_option
def branch(instance_id: str, new: str, count: int, expect: str, as_json: bool) -> None:
    """Create NEW as a copy of the running INSTANCE_ID, with its memory and processes, its own identity, network and
    secrets.

    Secrets are removed from INSTANCE_ID before, and read from their sources again afterwards, so their variables must
    be set.
    """
    from dataclasses import asdict

    from ktrdr_vm.approvals.apply import check_sources, reapply
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.cli.progress import show_resource
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.instance.branch import HostInputs
    from ktrdr_vm.instance.branch import branch as branch_instance
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.instance.secret_sources import read_source
    from ktrdr_vm.policy.load import read_policy

    require_root()
    names = [parse_instance_id(new if count == 1 else f"{new}-{number}") for number in range(1, count + 1)]
    instance = open_instance(instance_id)
    with instance.locked():
        loaded = instance.load()
        loaded.require_revision(expect)
        # All of them before anything is begun.
        secrets = {secret.name: read_source(secret) for secret in loaded.plan.profile.secrets}
        check_sources(loaded)
        policy = read_policy()
        inputs = HostInputs(
            lambda secret: secrets[secret.name],
            policy.mount_roots,
            policy.most_instances,
            lambda: reapply(loaded, policy, kinds=("secret",)),
        )
        made = branch_instance(loaded, names, inputs, notify=show_resource)
    loaded.close()
    if as_json:
        echo_json(asdict(made))
    else:
        click.echo(
            f"{instance_id}: paused for {made.paused * 1000:.0f} ms; running: {', '.join(made.instances)}", err=True
        )
