"""Connections to an instance with the OpenSSH clients: its key, its pinned host key, and no configuration of the user."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from ktrdr_vm.cli.options import complete_instance, instance_argument, open_instance, warn_of_guard

if TYPE_CHECKING:
    from ktrdr_vm.instance.instance import Instance


def _become(program: str, *arguments: str) -> NoReturn:
    """Replace this process by the client."""
    from ktrdr_vm.host.process import notify_observers, require_program
    from ktrdr_vm.host.program_call import ProgramCall

    path = str(require_program(program))
    notify_observers(ProgramCall((path, *arguments), outcome="replaces this process"))
    sys.stdout.flush()
    os.execv(path, [path, *arguments])  # noqa: S606


# Options after the instance belong to the command: `exec -t ID` requests a terminal, `exec ID ls -t` does not.
_VERBATIM = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _words(command: tuple[str, ...]) -> tuple[str, ...]:
    """The words of the command, without a leading `--`."""
    return command[1:] if command[:1] == ("--",) else command


def _options(instance: Instance) -> list[str]:
    from ktrdr_vm.instance.ssh_config import make_ssh_options

    instance.require_awake()
    warn_of_guard(instance)
    words = ["-F", "/dev/null"]
    for name, value in make_ssh_options(instance).items():
        words += ["-o", f"{name}={value}"]
    return words


@click.command(context_settings=_VERBATIM)
@instance_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(instance_id: str, command: tuple[str, ...]) -> None:
    """Open a shell in INSTANCE_ID, or run COMMAND in it, with the OpenSSH client.

    The SSH agent and X11 are not forwarded, and your SSH configuration is not read.
    """
    _become("ssh", *_options(open_instance(instance_id)), "--", instance_id, *_words(command))


@click.command("exec", context_settings=_VERBATIM)
@instance_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-t", "--tty", is_flag=True, help="Allocate a terminal.")
def exec_(instance_id: str, command: tuple[str, ...], tty: bool) -> None:
    """Run COMMAND in INSTANCE_ID and return its exit code. Standard input and output are those of this command."""
    _become("ssh", *_options(open_instance(instance_id)), "-tt" if tty else "-T", "--", instance_id, shlex.join(_words(command)))


@click.command()
@click.argument("source")
@click.argument("destination")
def cp(source: str, destination: str) -> None:
    """Copy SOURCE to DESTINATION; folders are copied recursively. One of the two is INSTANCE_ID:PATH."""
    from ktrdr_vm.errors import UsageError

    remote = [place.partition(":")[0] for place in (source, destination) if ":" in place and "/" not in place.partition(":")[0]]
    if len(remote) != 1:
        raise UsageError(
            "exactly one of SOURCE and TARGET must be in an instance", hint="use `ktrdr-vm cp INSTANCE_ID:PATH PATH` or the reverse"
        )
    _become("scp", *_options(open_instance(remote[0])), "-r", "-p", "--", source, destination)


@click.command()
@instance_argument
@click.argument("port")
def forward(instance_id: str, port: str) -> None:
    """Forward the loopback port PORT of this host to [HOST:]PORT of INSTANCE_ID, until interrupted."""
    from ktrdr_vm.errors import UsageError

    host, _, number = port.rpartition(":")
    if not number.isdigit() or not 0 < int(number) < 65536:
        raise UsageError(f"{port!r} is not a port", hint="use for example `ktrdr-vm forward INSTANCE_ID 8000`, or 127.0.0.1:8000")
    options = _options(open_instance(instance_id))
    click.echo(f"http://127.0.0.1:{number}/", err=True)
    _become(
        "ssh",
        *options,
        "-o",
        "ExitOnForwardFailure=yes",
        "-N",
        "-L",
        f"127.0.0.1:{number}:{host or '127.0.0.1'}:{number}",
        "--",
        instance_id,
    )


@click.command("ssh-config")
@click.argument("instance_id", required=False, shell_complete=complete_instance)
@click.option("--inventory", is_flag=True, help="Print an Ansible inventory.")
def ssh_config(instance_id: str | None, inventory: bool) -> None:
    """Print an OpenSSH `Host` block for INSTANCE_ID, or for all instances, for ssh, scp, rsync and editors."""
    from ktrdr_vm.host.journal import list_journals
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.instance.ssh_config import make_inventory_host, make_ssh_options

    names = [instance_id] if instance_id else [journal.instance_id for journal in list_journals(find_home())]
    found = {name: make_ssh_options(open_instance(name)) for name in names}
    if inventory:
        import yaml

        hosts = {name: make_inventory_host(options) for name, options in found.items()}
        click.echo(yaml.safe_dump({"all": {"hosts": hosts}}, sort_keys=False))
        return
    for name, options in found.items():
        click.echo(f"Host {name}")
        for option, value in options.items():
            click.echo(f"    {option} {value}")


@click.command()
@instance_argument
def console(instance_id: str) -> None:
    """Attach to the serial console of INSTANCE_ID. Ctrl-] detaches. The output of the guest is not escaped."""
    from ktrdr_vm.host.libvirt import URI

    instance = open_instance(instance_id)
    instance.require_awake()
    _become("virsh", "-c", URI, "console", instance.identity.domain)
