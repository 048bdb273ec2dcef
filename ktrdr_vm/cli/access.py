"""`ssh` and `exec`: into an instance, with its own key and its pinned host key, and nothing of the person's."""

from __future__ import annotations

import os
import sys

import click

from ktrdr_vm.cli.options import instance_argument


@click.command(context_settings={"ignore_unknown_options": True})
@instance_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(instance_id: str, command: tuple[str, ...]) -> None:
    """Enter INSTANCE_ID, or run COMMAND in it, with OpenSSH's own client. No agent, no X11, no configuration of yours."""
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.host.process import require_program
    from ktrdr_vm.instance import Instance
    from ktrdr_vm.plan.identity import parse_instance_id

    instance = Instance(find_home(), parse_instance_id(instance_id), Libvirt())
    argv = [str(require_program("ssh")), *instance.ssh_arguments(), *command]
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606 - the client takes over this process, terminal and all


@click.command("exec", context_settings={"ignore_unknown_options": True})
@instance_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Seconds.")
def exec_(instance_id: str, command: tuple[str, ...], timeout: float) -> int:
    """Run COMMAND in INSTANCE_ID with this command's standard input and output, and end with its exit code."""
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.instance import Instance
    from ktrdr_vm.plan.identity import parse_instance_id

    instance = Instance(find_home(), parse_instance_id(instance_id), Libvirt())
    stdin = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    try:
        done = instance.connect().run(list(command), stdin=stdin, timeout=timeout, environment=instance.environment())
    finally:
        instance.close()
    sys.stdout.buffer.write(done.stdout)
    sys.stderr.buffer.write(done.stderr)
    sys.stdout.flush()
    return done.exit_code
