"""`attach`: the output of the workload of a running instance."""

from __future__ import annotations

import sys

import click

from ktrdr_vm.cli.options import instance_argument


@click.command()
@instance_argument
@click.option("--timeout", type=float, default=7 * 86400.0, show_default=True, help="Stop after this many seconds.")
def attach(instance_id: str, timeout: float) -> int:
    """Print the output of the workload of INSTANCE_ID from its first line until it ends, and return its exit code.

    Control characters are escaped.
    """
    from ktrdr_vm.cli.options import open_instance, warn_of_guard
    from ktrdr_vm.report.escape import escape_text
    from ktrdr_vm.run.mask import find_mask
    from ktrdr_vm.run.workload import follow

    instance = open_instance(instance_id)
    loaded = instance.load()
    warn_of_guard(instance)
    mask = find_mask(loaded, lambda text: click.echo(text, err=True))

    def show(data: bytes) -> None:
        sys.stdout.write(escape_text(data.decode("utf-8", "replace")))
        sys.stdout.flush()

    try:
        ending = follow(loaded.connect, mask=mask, on_output=show, timeout=timeout)
    finally:
        loaded.close()
    if ending.exit_code is None:
        click.echo(
            "the workload is still running"
            if ending.outcome == "timeout"
            else "the workload ended without an exit code",
            err=True,
        )
        return 1
    return ending.exit_code
