"""Options and arguments of several commands, and the instance or run that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ktrdr_vm.instance.instance import Instance

# Also the name of a shipped profile, beside which a folder of that name may exist.
profile_argument = click.argument("profile", type=click.Path(path_type=Path), required=False)
folder = click.Path(path_type=Path, exists=True, file_okay=False)
workspace_option = click.option(
    "--workspace",
    type=folder,
    help=(
        "The folder that relative paths start from. Default: the current folder; without PROFILE, the top of its"
        " repository."
    ),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to standard output.")


expect_option = click.option(
    "--expect",
    default="",
    metavar="REV",
    help="Refuse unless REV is the revision of the instance: its incarnation, plan and grants. `status` shows it.",
)


send_secret_option = click.option(
    "--send-secret",
    "sent_secrets",
    multiple=True,
    metavar="NAME",
    help="Read this brokered secret here and send it to the place, where it stays in memory. Repeatable.",
)


def complete_instance(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Instance ids of this state directory, for shell completion."""
    from ktrdr_vm.host.paths import find_home

    try:
        return sorted(path.name for path in find_home().instances.iterdir() if path.name.startswith(incomplete))
    except OSError:
        return []


instance_argument = click.argument("instance_id", shell_complete=complete_instance)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that makes a plan."""
    command = click.option(
        "--instance-id", metavar="ID", help="Default: derived from the repository and branch of the workspace."
    )(command)
    return workspace_option(command)


def open_instance(instance_id: str) -> Instance:
    """The instance in this state directory. Whether it exists is checked on first use."""
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.instance.instance import Instance

    return Instance(find_home(), parse_instance_id(instance_id), Libvirt())


def warn_of_guard(instance: Instance) -> None:
    """Print faults of its guard to standard error: in the guest they look like a network failure."""
    from ktrdr_vm.instance.guard_status import check_guard

    for fault in check_guard(instance.paths.guard):
        click.echo(f"warning: {instance.identity.instance_id}: {fault}; its connections are interrupted", err=True)


def find_run(instance_id: str, run_id: str) -> Path:
    """The directory of a run, by default the newest."""
    from ktrdr_vm.host import runs
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id

    return runs.find_run(find_home(), parse_instance_id(instance_id).instance_id, run_id)
