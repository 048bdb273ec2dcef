"""`pull`: fetches the commits of a guest into separate refs."""

from __future__ import annotations

import click

from ktrdr_vm.cli.options import instance_argument, json_option


@click.command()
@instance_argument
@json_option
def pull(instance_id: str, as_json: bool) -> None:
    """Fetch the commits of INSTANCE_ID into refs/ktrdr/INSTANCE_ID/* of the repository of its workspace."""
    from dataclasses import asdict
    from pathlib import Path

    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.guest.commits import pull_commits
    from ktrdr_vm.host.repository import find_repository

    loaded = open_instance(instance_id).load()
    plan = loaded.plan
    if plan.profile.workspace is None:
        raise UsageError("the profile of this instance has no workspace", where=instance_id, hint="only a workspace has commits to fetch")
    repository = find_repository(Path(plan.facts.workspace), plan.profile.workspace.source)
    with loaded.locked():
        came = pull_commits(repository, plan.facts.base_commit, plan.profile.workspace.target, loaded.connect(), loaded.identity)
    loaded.close()
    returned = came.refs
    if as_json:
        echo_json([asdict(one) for one in returned])
    for one in () if as_json else returned:
        click.echo(f"{one.commit[:12]}  {one.ref}  {len(one.changed)} paths changed")
    if not returned:
        click.echo("nothing new", err=True)
    if left := came.describe_left():
        click.echo(f"left behind in the guest: {left}", err=True)
