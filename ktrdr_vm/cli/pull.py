"""`pull`: fetches the commits of a guest into separate refs."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import instance_argument, json_option

if TYPE_CHECKING:
    from ktrdr_vm.instance.loaded import LoadedInstance


@click.command()
@instance_argument
@click.option(
    "--stream",
    is_flag=True,
    hidden=True,
    help="Write the base and the guest's bundle to standard output; a client calls it.",
)
@json_option
def pull(instance_id: str, stream: bool, as_json: bool) -> None:
    """Fetch the commits of INSTANCE_ID into refs/ktrdr/INSTANCE_ID/* of the repository of its workspace."""
    from pathlib import Path

    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import show_returned
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.guest.commits import pull_commits
    from ktrdr_vm.host.repository import find_repository

    loaded = open_instance(instance_id).load()
    plan = loaded.plan
    if plan.profile.workspace is None:
        raise UsageError(
            "the profile of this instance has no workspace",
            where=instance_id,
            hint="only a workspace has commits to fetch",
        )
    if stream:
        with loaded.locked():
            _stream(loaded, plan.profile.workspace.target)
        loaded.close()
        return
    repository = find_repository(Path(plan.facts.workspace), plan.profile.workspace.source)
    with loaded.locked():
        came = pull_commits(
            repository, plan.facts.base_commit, plan.profile.workspace.target, loaded.connect(), loaded.identity
        )
    loaded.close()
    show_returned(came, as_json=as_json)


def _stream(loaded: LoadedInstance, target: str) -> None:
    """One line of JSON with the base and the counts of what stays behind, then the bundle as the guest made it, which
    the client checks."""
    from ktrdr_vm.guest.commits import download_commits

    base = loaded.plan.facts.base_commit
    with tempfile.TemporaryFile() as file:
        _, (_, *left) = download_commits(base, target, loaded.connect(), loaded.identity, file)
        sys.stdout.buffer.write(json.dumps({"base_commit": base, "left": left}).encode() + b"\n")
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
