"""`templates build|list|remove`."""

from __future__ import annotations

from pathlib import Path

import click

from ktrdr_vm.cli.options import json_option, plan_options, profile_argument


@click.group()
def templates() -> None:
    """Build, list and remove templates: saved VMs that new instances are forked from."""


@templates.command()
@profile_argument
@plan_options
@json_option
def build(profile: Path | None, instance_id: str | None, workspace: Path | None, as_json: bool) -> None:
    """Build the template for PROFILE, and prepare its project. `apply` does this when it needs the template for the
    first time."""
    from dataclasses import asdict

    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.inputs.profile_file import find_profile
    from ktrdr_vm.inputs.resolve import gather
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.templates.project import warm_up
    from ktrdr_vm.templates.store import fits, list_templates

    require_root()
    home = find_home()
    profile, workspace = find_profile(profile, workspace)
    gathered = gather(profile, home=home, workspace=workspace, instance_id=instance_id or "template")
    if not fits(gathered.plan):
        raise UsageError(
            "instances of this profile cannot be forked, because its image is a stock image",
            where=str(profile),
            hint="`apply` boots them",
        )

    def say(text: str) -> None:
        click.echo(text, err=True)

    key = warm_up(home, gathered, Libvirt(), say)
    if as_json:
        echo_json(next(asdict(template) for template in list_templates(home) if template.key == key))
    else:
        click.echo(key)


@templates.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the templates in the state directory: key, kind, owner, image, shape, creation, last use, size."""
    from dataclasses import asdict

    from ktrdr_vm.cli.output import echo_json, say_none
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.templates.store import list_templates

    found = list_templates(find_home())
    if as_json:
        echo_json([asdict(template) for template in found])
        return
    if not found:
        say_none(
            "templates", "`ktrdr-vm apply` builds the one that it needs, `ktrdr-vm templates build` does so beforehand"
        )
    for one in found:
        shape = f"{one.vcpus} vCPUs, {one.memory} MiB, disk {one.disk} MiB"
        dates = f"created {one.created_at[:16]}  used {one.used_at[:16]}"
        click.echo(
            f"{one.key}  {one.kind:<20}  uid {one.owner}  {one.image[:12]}  {shape}  {dates}  {one.size >> 20} MiB on"
            " disk"
        )
        if one.made_from:
            click.echo(
                f"    from {one.made_from.get('repository')} at {one.made_from.get('branch')}"
                f" {one.made_from.get('commit', '')[:12]}"
            )


@templates.command()
@click.argument("key")
def remove(key: str) -> None:
    """Remove the template KEY, unless an instance is based on it."""
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.journal import list_journals, list_unreadable
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.templates.store import remove_template

    require_root()
    home = find_home()
    users = [journal.instance_id for journal in list_journals(home) if journal.template == key]
    if users:
        raise UsageError(f"instances use this template: {', '.join(users)}", where=key, hint="destroy them first")
    if unreadable := list_unreadable(home):
        raise UsageError(
            f"the journals of these instances cannot be read, and they may use this template: {', '.join(unreadable)}",
            where=key,
            hint="`ktrdr-vm status` says why; destroy them first",
        )
    if not remove_template(home, key):
        raise UsageError("there is no such template", where=key, hint="`ktrdr-vm templates list` shows them")
