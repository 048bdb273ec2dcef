"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

profile_argument = click.argument("profile", type=click.Path(path_type=Path))
folder = click.Path(path_type=Path, exists=True, file_okay=False)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def complete_instance(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Instance ids of this home, for the shell."""
    from ktrdr_vm.host.paths import find_home

    try:
        return sorted(path.name for path in find_home().instances.iterdir() if path.name.startswith(incomplete))
    except OSError:
        return []


instance_argument = click.argument("instance_id", shell_complete=complete_instance)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that makes a plan takes."""
    command = click.option("--instance-id", metavar="ID", help="Default: derived from the workspace's repository and branch.")(command)
    return click.option(
        "--workspace",
        type=folder,
        default=Path(),
        help="The folder that the profile's relative paths start from. Default: the current one.",
    )(command)
