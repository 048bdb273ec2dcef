"""The command `ktrdr-vm`: finds a command's file only when it is asked for, and turns every error into text and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

_COMMANDS = {
    "apply": "ktrdr_vm.cli.apply:apply",
    "plan": "ktrdr_vm.cli.plan:plan",
    "render": "ktrdr_vm.cli.plan:render",
    "validate": "ktrdr_vm.cli.plan:validate",
    "list": "ktrdr_vm.cli.instances:list_",
    "status": "ktrdr_vm.cli.instances:status",
    "suspend": "ktrdr_vm.cli.suspend:suspend",
    "resume": "ktrdr_vm.cli.suspend:resume",
    "snapshot": "ktrdr_vm.cli.suspend:snapshot",
    "destroy": "ktrdr_vm.cli.instances:destroy",
    "gc": "ktrdr_vm.cli.instances:gc",
    "report": "ktrdr_vm.cli.runs:report",
    "events": "ktrdr_vm.cli.runs:events",
    "logs": "ktrdr_vm.cli.runs:logs",
    "egress": "ktrdr_vm.cli.egress:egress",
    "ssh": "ktrdr_vm.cli.ssh:ssh",
    "exec": "ktrdr_vm.cli.ssh:exec_",
    "cp": "ktrdr_vm.cli.ssh:cp",
    "forward": "ktrdr_vm.cli.ssh:forward",
    "ssh-config": "ktrdr_vm.cli.ssh:ssh_config",
    "console": "ktrdr_vm.cli.ssh:console",
    "pull": "ktrdr_vm.cli.pull:pull",
    "gate": "ktrdr_vm.cli.gate:gate",
    "escalations": "ktrdr_vm.cli.escalations:escalations",
    "secrets": "ktrdr_vm.cli.secrets:secrets",
    "attach": "ktrdr_vm.cli.attach:attach",
    "bundle": "ktrdr_vm.cli.bundle:bundle",
    "images": "ktrdr_vm.cli.images:images",
    "templates": "ktrdr_vm.cli.templates:templates",
    "doctor": "ktrdr_vm.cli.doctor:doctor",
    "metrics": "ktrdr_vm.cli.metrics:metrics",
    "mcp": "ktrdr_vm.cli.mcp:mcp",
}

_HELP = {
    "apply": "Make the sandbox of a profile, run it, gate it, bring the evidence back.",
    "plan": "Show what will exist, and the plan's digest. Touches nothing.",
    "render": "Write every document of the plan as a file.",
    "validate": "Show every error of a profile.",
    "list": "List the instances of this host.",
    "status": "Verify each resource of an instance.",
    "suspend": "Put an instance to the disk, without its secrets and its network.",
    "resume": "Bring a suspended instance back, behind its firewall.",
    "snapshot": "Copy an instance's disk, to begin others from it.",
    "destroy": "Remove instances and prove that nothing is left.",
    "gc": "Remove what runs that died have left.",
    "report": "Show the report of a run.",
    "events": "Show the events of a run.",
    "logs": "Show the console of an instance.",
    "egress": "Show what left an instance, and what was refused.",
    "ssh": "Enter an instance, or run a command in it with a terminal.",
    "exec": "Run a command in an instance and end with its exit code.",
    "cp": "Copy files to or from an instance.",
    "forward": "Make a port of an instance reachable on this host's loopback.",
    "ssh-config": "Print a configuration for OpenSSH and what builds on it.",
    "console": "Attach to the serial console of an instance.",
    "pull": "Bring an instance's commits into refs of their own.",
    "gate": "Run gates against a running instance.",
    "escalations": "See what agents ask for, and answer.",
    "secrets": "See, renew and take back the secrets of an instance.",
    "attach": "Follow what the workload of an instance prints.",
    "bundle": "Make the pull-request bundle of a run.",
    "images": "Build, list and remove images.",
    "templates": "Build, list and remove templates to fork from.",
    "doctor": "Check what this host has and lacks.",
    "metrics": "Print metrics for Prometheus.",
    "mcp": "Serve the safe part to an agent's host.",
}


class _LazyGroup(click.Group):
    """Help comes from the table above, so that listing commands imports none of them."""

    def invoke(self, ctx: click.Context) -> object:
        result: object = 0
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            # click would end with 1, and say nothing: here that is a gate that failed.
            if not _is_unread():
                raise OSError(error.errno, "the other side closed the connection") from error
            # The reader of our output has enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        _add_debug_option(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _HELP[name]) for name in _COMMANDS])


def _is_unread() -> bool:
    """Has whoever read standard output or standard error gone?"""
    import select

    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return bool(poll.poll(0))


def _start_debugging(_context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        # Imported late: help and most errors of the command line need none of it.
        from ktrdr_vm.cli.debug import print_programs

        print_programs()


def _make_debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_start_debugging,
        help="Print each program that is called, as a line for a shell, on standard error. Also: KTRDR_VM_DEBUG=1.",
    )


def _add_debug_option(command: click.Command) -> None:
    """Every command takes it, at any place of the line."""
    if not any("--debug" in one.opts for one in command.params):
        command.params.append(_make_debug_option())
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_debug_option(inner)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ktrdr-vm")
def cli() -> None:
    """Disposable virtual machines for coding agents: a declared sandbox, gates, evidence, and a proof that nothing is left."""


_add_debug_option(cli)


class Interrupted(KeyboardInterrupt):
    """A signal that asks for the end. `KeyboardInterrupt` itself, raised while text is executed (a dataclass being made is enough),
    makes CPython end by the signal in place of the exit code, even where it was caught."""


def main() -> None:
    """The entry point. Exit codes are the contract's."""
    interrupts = 0

    def interrupt(number: int, _frame: object) -> None:
        nonlocal interrupts
        if number == signal.SIGHUP and interrupts:
            # A terminal that closes says so more than once, from the kernel and from the shell; nobody asked twice.
            return
        interrupts += 1
        if interrupts > 1:
            # Asked twice: stop at once. What is left, `gc` finds by the journal and on the host.
            os._exit(130)
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    # Imported late: most commands need only part of it.
    from ktrdr_vm.cli.debug import print_programs
    from ktrdr_vm.cli.output import show_error
    from ktrdr_vm.errors import HostError, KtrdrError
    from ktrdr_vm.host.owner import forbid_cores

    try:
        forbid_cores()
        if os.environ.get("KTRDR_VM_DEBUG", "0") not in ("", "0"):
            print_programs()
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("ktrdr-vm: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except KtrdrError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        # A file, a right, a disk: nothing that a person needs a trace of.
        where = str(error.filename or "this host")
        show_error(HostError(error.strerror or str(error), where=where, hint="look at this place, its rights and its free space"))
        sys.exit(HostError.exit_code)


if __name__ == "__main__":
    main()
