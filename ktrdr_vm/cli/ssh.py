"""Connections to an instance with the OpenSSH clients: its key, its pinned host key, and no configuration of the
user."""

from __future__ import annotations

import os
import shlex
from typing import NoReturn

import click

from ktrdr_vm.cli.connect import check_copy, parse_forward, replace_process, require_free_port
from ktrdr_vm.cli.options import complete_instance, expect_option, instance_argument, open_instance, warn_of_guard
from ktrdr_vm.cli.world import ask_in_world
from ktrdr_vm.guest.protocol import ENVIRONMENT_FILE


def _become(program: str, *arguments: str) -> NoReturn:
    """Replace this process by the client."""
    from ktrdr_vm.host.process import require_program

    replace_process([str(require_program(program)), *arguments])


# Options after the instance belong to the command: `exec -t ID` requests a terminal, `exec ID ls -t` does not.
_VERBATIM = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _words(command: tuple[str, ...]) -> tuple[str, ...]:
    """The words of the command, without a leading `--`."""
    return command[1:] if command[:1] == ("--",) else command


def _options(instance_id: str, expect: str = "") -> list[str]:
    """The options of the client, which itself runs outside of a world: its files and ports are those of the host."""
    return ask_in_world(lambda: _make_options(instance_id, expect))


def _make_options(instance_id: str, expect: str) -> list[str]:
    from ktrdr_vm.instance.ssh_config import make_ssh_options

    instance = open_instance(instance_id)
    loaded = instance.load()
    loaded.target.refuse_suspended()
    loaded.require_revision(expect)
    warn_of_guard(instance)
    words = ["-F", "/dev/null"]
    for name, value in make_ssh_options(loaded).items():
        words += ["-o", f"{name}={value}"]
    return words


@click.command(context_settings=_VERBATIM)
@instance_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(instance_id: str, command: tuple[str, ...]) -> None:
    """Open a shell in INSTANCE_ID, or run COMMAND in it, with the OpenSSH client.

    The SSH agent and X11 are not forwarded, and your SSH configuration is not read. COMMAND is a line of the guest's
    shell, as for `ssh`; one that a signal ended returns 128 and the number of the signal.
    """
    line = (make_shell_line(words),) if (words := _words(command)) else ()
    _become("ssh", *_options(instance_id), "--", instance_id, *line)


@click.command("exec", context_settings=_VERBATIM)
@instance_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-t", "--tty", is_flag=True, help="Allocate a terminal.")
@expect_option
def exec_(instance_id: str, command: tuple[str, ...], tty: bool, expect: str) -> None:
    """Run COMMAND in INSTANCE_ID and return its exit code. Standard input and output are those of this command.

    A command that a signal ended returns 128 and the number of the signal. If this command ends first, the one in the
    guest gets SIGHUP.
    """
    words = _words(command)
    if not words:
        # A `--` alone, such as before an empty variable of a script: nothing would run, and succeed.
        raise click.UsageError("Missing argument 'COMMAND...'.")
    line = make_exec_line(words, tty=tty)
    _become("ssh", *_options(instance_id, expect), "-tt" if tty else "-T", "--", instance_id, line)


# The variables of the instance: a value may contain what /etc/environment, which sshd reads, cannot.
_VARIABLES = f"[ ! -r {ENVIRONMENT_FILE} ] || . {ENVIRONMENT_FILE}\n"
# The command is a child of a shell, so that a signal that ends it becomes an exit code: OpenSSH's client says 255 to
# each signal.
_RUN = '"$@"; exit $?'
_RUN_LINE = '"${SHELL:-/bin/sh}" -c "$1"; exit $?'
# Without a terminal sshd tells nobody that the client has gone; the kernel tells a child that its parent has. `timeout`
# hands the signal on to all that its command has started. A shell's own words, and images without these programs, do
# without.
_RUN_TIED = """case $(command -v -- "$1") in
  /*) if setpriv --pdeathsig clear timeout 0 true 2>/dev/null; then
        exec setpriv --pdeathsig KILL sh -c 'setpriv --pdeathsig HUP timeout 0 "$@"; exit $?' sh "$@"
      fi ;;
esac
"$@"; exit $?"""


def make_shell_line(words: tuple[str, ...]) -> str:
    """The line for the guest's login shell that runs the words as OpenSSH does, joined as a shell's line, and says how
    it ended.

    That shell is a child of another one, so that a signal which ends it becomes an exit code.
    """
    return "exec " + shlex.join(("sh", "-c", _VARIABLES + _RUN_LINE, "sh", " ".join(words)))


def make_exec_line(words: tuple[str, ...], *, tty: bool) -> str:
    """The line for the guest's login shell that runs these words, and ends as a local shell would say that they
    ended."""
    return "exec " + shlex.join(("sh", "-c", _VARIABLES + (_RUN if tty else _RUN_TIED), "sh", *words))


@click.command()
@click.argument("source")
@click.argument("destination")
def cp(source: str, destination: str) -> None:
    """Copy SOURCE to DESTINATION; folders are copied recursively. One of the two is INSTANCE_ID:PATH."""
    remote = check_copy(source, destination)
    _become("scp", *_options(remote), "-r", "-p", "--", source, destination)


@click.command()
@instance_argument
@click.argument("ports", nargs=-1, required=True, metavar="[LOCAL:][HOST:]PORT...")
def forward(instance_id: str, ports: tuple[str, ...]) -> None:
    """Forward loopback ports of this host to ports of INSTANCE_ID, until interrupted.

    LOCAL is the port of this host, by default the same number as PORT. HOST is a name or an address as the guest knows
    it, by default its own loopback. The addresses are printed when the ports are open.
    """
    forwards = [parse_forward(text) for text in ports]
    for number, (local, _, _) in enumerate(forwards):
        if local in [one for one, _, _ in forwards[:number]]:
            raise click.UsageError(f"the port {local} of this host occurs twice; LOCAL:PORT selects another one")
        require_free_port(local)
    words = [word for local, host, port in forwards for word in ("-L", f"127.0.0.1:{local}:{host}:{port}")]
    said = "; ".join(f"echo {shlex.quote(f'http://127.0.0.1:{local}/')} >&2" for local, _, _ in forwards)
    # OpenSSH runs it once it has bound the ports; the client stays, as it has no command.
    settings = ("ExitOnForwardFailure=yes", "PermitLocalCommand=yes", f"LocalCommand={said}")
    options = [word for setting in settings for word in ("-o", setting)]
    _become("ssh", *_options(instance_id), *options, "-N", *words, "--", instance_id)


@click.command("ssh-config")
@click.argument("instance_id", required=False, shell_complete=complete_instance)
@click.option("--inventory", is_flag=True, help="Print an Ansible inventory.")
@click.option(
    "--wildcard",
    is_flag=True,
    help="Print one block for `ID.ktrdr` of all instances, also those that are created later.",
)
def ssh_config(instance_id: str | None, inventory: bool, wildcard: bool) -> None:
    """Print an OpenSSH `Host` block for INSTANCE_ID, or for all instances, for ssh, scp, rsync and editors.

    Only the user whose instance it is can use the block: under sudo, root.
    """
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.journal import list_journals
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import SSH_SUFFIX
    from ktrdr_vm.instance.ssh_config import make_inventory_host, make_ssh_options, make_wildcard_options

    if wildcard and (instance_id or inventory):
        raise UsageError("--wildcard stands for all instances", where="ktrdr-vm ssh-config", hint="leave out the rest")
    if wildcard:
        options = make_wildcard_options(find_home().root)
        _warn_of_key(options["IdentityFile"])
        _print_block(f"*{SSH_SUFFIX}", options)
        return
    names = [instance_id] if instance_id else [journal.instance_id for journal in list_journals(find_home())]
    found = {name: make_ssh_options(open_instance(name).load()) for name in names}
    _warn_of_key(next(iter(found.values()), {}).get("IdentityFile", ""))
    if inventory:
        import yaml

        hosts = {name: make_inventory_host(options) for name, options in found.items()}
        click.echo(yaml.safe_dump({"all": {"hosts": hosts}}, sort_keys=False))
        return
    for name, options in found.items():
        _print_block(name, options)


def _print_block(pattern: str, options: dict[str, str]) -> None:
    click.echo(f"Host {pattern}")
    for option, value in options.items():
        click.echo(f"    {option} {value}")


@click.command()
@instance_argument
@click.option(
    "--pass-descriptor", is_flag=True, help="Send the connection over standard output, for `ProxyUseFdpass` of OpenSSH."
)
def proxy(instance_id: str, pass_descriptor: bool) -> None:
    """Connect standard input and output to the SSH port of INSTANCE_ID, which can be reached from its network namespace
    only.

    `ktrdr-vm ssh-config` prints it as the ProxyCommand of an instance, for ssh, scp, rsync, Ansible and editors.
    """
    from ktrdr_vm.cli.ssh_proxy import connect_streams

    connect_streams(instance_id, pass_descriptor=pass_descriptor)


def _warn_of_key(path: str) -> None:
    """Under sudo the block would be put into the file of somebody who cannot read what it names."""
    from ktrdr_vm.host.owner import find_owner

    if path and os.geteuid() == 0 and find_owner()[0] != 0:
        click.echo(
            f"only root can use this: the key {path} is root's. As yourself, use `sudo ktrdr-vm ssh` and `sudo ktrdr-vm"
            " cp`; for editors and rsync, put the block into root's own ~/.ssh/config",
            err=True,
        )


@click.command()
@instance_argument
@click.argument("target", metavar="sftp|HOST:PORT")
def stream(instance_id: str, target: str) -> None:
    """Connect standard input and output to HOST:PORT as INSTANCE_ID knows it, or to its SFTP server.

    `cp` and `forward` of a client call it.
    """
    from ktrdr_vm.places.relay import parse_target

    _become(
        "ssh",
        *_options(instance_id),
        *parse_target(target),
        "--",
        instance_id,
        *(("sftp",) if target == "sftp" else ()),
    )


@click.command()
@instance_argument
def console(instance_id: str) -> None:
    """Attach to the serial console of INSTANCE_ID. Ctrl-] detaches. The output of the guest is not escaped."""
    from ktrdr_vm.host.libvirt import URI

    instance = open_instance(instance_id)
    instance.refuse_suspended()
    _become("virsh", "-c", URI, "console", instance.identity.domain)
