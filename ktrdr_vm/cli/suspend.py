"""`suspend`, `resume` and `snapshot`: interactive instances over time."""

from __future__ import annotations

import click

from ktrdr_vm.cli.options import instance_argument, json_option


@click.command()
@instance_argument
def suspend(instance_id: str) -> None:
    """Suspend INSTANCE_ID to disk. Its secrets and mounts are removed first, its network resources afterwards."""
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.progress import show_resource
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.instance.suspend import suspend as suspend_instance

    require_root()
    instance = open_instance(instance_id)
    with instance.locked():
        suspend_instance(instance.load(), notify=show_resource)
    click.echo(f"{instance_id}: suspended; `ktrdr-vm resume {instance_id}` brings it back", err=True)


@click.command()
@instance_argument
def resume(instance_id: str) -> None:
    """Resume INSTANCE_ID. Its secrets are read from their sources again, so their variables must be set."""
    from ktrdr_vm.approvals.apply import check_sources, reapply
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.progress import show_resource
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.instance.secret_sources import read_source
    from ktrdr_vm.instance.suspend import resume as resume_instance
    from ktrdr_vm.policy.load import read_policy

    require_root()
    instance = open_instance(instance_id)
    with instance.locked():
        loaded = instance.load()
        # All of them are read before the resume begins.
        secrets = {secret.name: read_source(secret) for secret in loaded.plan.profile.secrets}
        check_sources(loaded)
        policy = read_policy()
        resume_instance(
            loaded,
            read_secret=lambda secret: secrets[secret.name],
            mount_roots=policy.mount_roots,
            notify=show_resource,
        )
        for one in reapply(loaded, policy):
            click.echo(f"{one.packet.kind} {one.id}: reapplied", err=True)
    loaded.close()
    click.echo(f"{instance_id}: running", err=True)


@click.command()
@instance_argument
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Remove the snapshot NAME.")
@json_option
def snapshot(instance_id: str, name: str | None, remove: bool, as_json: bool) -> None:
    """Copy the disk of INSTANCE_ID to the snapshot NAME. Without NAME, list its snapshots.

    `apply --from INSTANCE_ID@NAME` creates an instance from a snapshot.
    """
    from dataclasses import asdict

    from ktrdr_vm.approvals.apply import check_sources, reapply
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.cli.progress import show_resource
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.instance.secret_sources import read_source
    from ktrdr_vm.instance.snapshot import list_snapshots, remove_snapshot, take_snapshot
    from ktrdr_vm.policy.load import read_policy

    instance = open_instance(instance_id)
    if name is None:
        instance.require_journal()
        found = list_snapshots(instance.home, instance_id)
        if as_json:
            echo_json([asdict(one) for one in found])
            return
        for one in found:
            click.echo(f"{instance_id}@{one.name:<30} {one.created_at}  {one.size >> 20} MiB on disk")
        return
    require_root()
    with instance.locked():
        if remove:
            if not remove_snapshot(instance.home, instance_id, name):
                raise UsageError(f"there is no snapshot {name}", hint=f"`ktrdr-vm snapshot {instance_id}` lists them")
            return
        loaded = instance.load()
        secrets = {secret.name: read_source(secret) for secret in loaded.plan.profile.secrets}
        check_sources(loaded)
        policy = read_policy()
        made = take_snapshot(
            loaded,
            name,
            read_secret=lambda secret: secrets[secret.name],
            mount_roots=policy.mount_roots,
            reapply=lambda: reapply(loaded, policy, kinds=("secret",)),
            notify=show_resource,
        )
    loaded.close()
    if as_json:
        echo_json(asdict(made))
    else:
        click.echo(f"{instance_id}@{name}: {made.size >> 20} MiB on disk", err=True)
