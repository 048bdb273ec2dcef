"""The command `ktrdr-vm`: imports the file of a command on use, and converts every error to text and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

_COMMANDS = {
    "init": "ktrdr_vm.cli.init:init",
    "apply": "ktrdr_vm.cli.apply:apply",
    "verify": "ktrdr_vm.cli.verify:verify",
    "verify-attestation": "ktrdr_vm.cli.verify:verify_attestation",
    "plan": "ktrdr_vm.cli.plan:plan",
    "render": "ktrdr_vm.cli.plan:render",
    "validate": "ktrdr_vm.cli.plan:validate",
    "list": "ktrdr_vm.cli.instances:list_",
    "top": "ktrdr_vm.cli.top:top",
    "status": "ktrdr_vm.cli.instances:status",
    "suspend": "ktrdr_vm.cli.suspend:suspend",
    "resume": "ktrdr_vm.cli.suspend:resume",
    "snapshot": "ktrdr_vm.cli.suspend:snapshot",
    "branch": "ktrdr_vm.cli.branch:branch",
    "destroy": "ktrdr_vm.cli.instances:destroy",
    "gc": "ktrdr_vm.cli.instances:gc",
    "runs": "ktrdr_vm.cli.history:runs",
    "report": "ktrdr_vm.cli.runs:report",
    "events": "ktrdr_vm.cli.runs:events",
    "logs": "ktrdr_vm.cli.runs:logs",
    "egress": "ktrdr_vm.cli.egress:egress",
    "ssh": "ktrdr_vm.cli.ssh:ssh",
    "exec": "ktrdr_vm.cli.ssh:exec_",
    "cp": "ktrdr_vm.cli.ssh:cp",
    "forward": "ktrdr_vm.cli.ssh:forward",
    "ssh-config": "ktrdr_vm.cli.ssh:ssh_config",
    "proxy": "ktrdr_vm.cli.ssh:proxy",
    "console": "ktrdr_vm.cli.ssh:console",
    "pull": "ktrdr_vm.cli.pull:pull",
    "push": "ktrdr_vm.cli.push:push",
    "gate": "ktrdr_vm.cli.gate:gate",
    "escalations": "ktrdr_vm.cli.escalations:escalations",
    "secrets": "ktrdr_vm.cli.secrets:secrets",
    "attach": "ktrdr_vm.cli.attach:attach",
    "bundle": "ktrdr_vm.cli.bundle:bundle",
    "images": "ktrdr_vm.cli.images:images",
    "templates": "ktrdr_vm.cli.templates:templates",
    "places": "ktrdr_vm.cli.places:places",
    "submit": "ktrdr_vm.cli.requests:submit",
    "queue": "ktrdr_vm.cli.requests:queue",
    "watch": "ktrdr_vm.cli.requests:watch",
    "cancel": "ktrdr_vm.cli.requests:cancel",
    "fetch": "ktrdr_vm.cli.requests:fetch",
    "run-request": "ktrdr_vm.cli.run_request:run_request",
    "serve": "ktrdr_vm.cli.run_request:serve",
    "relay": "ktrdr_vm.cli.run_request:relay",
    "stream": "ktrdr_vm.cli.ssh:stream",
    "doctor": "ktrdr_vm.cli.doctor:doctor",
    "metrics": "ktrdr_vm.cli.metrics:metrics",
    "mcp": "ktrdr_vm.cli.mcp:mcp",
}

# These read files of the person, check what a world needs, or go on outside of it; what they ask an instance, they ask
# in it.
_OUTSIDE = frozenset(
    "init plan render validate runs report events bundle doctor verify-attestation ssh exec cp forward proxy".split()
    + "places submit queue watch cancel fetch serve relay stream".split()
)

# They name an instance, which may be at a place; see at_place.py.
_AT_PLACES = frozenset("ssh exec cp forward console attach logs events report bundle pull status escalations".split())

_HELP = {
    "init": "Write a first profile of a repository, and what its gates need.",
    "apply": "Create the VM of a profile, run its workload and gates, and destroy it.",
    "verify": "Run the gates on a commit in a fresh VM, without a workload.",
    "verify-attestation": "Check the signature and the verdict of an attestation.",
    "plan": "Show what `apply` would create, and the digest of the plan.",
    "render": "Write every document of the plan to a folder.",
    "validate": "Show all errors of a profile.",
    "list": "List the instances of this host.",
    "top": "Show all streams live, and answer what agents ask for.",
    "status": "Verify each resource of an instance against its plan.",
    "suspend": "Suspend an instance to disk; its secrets are removed first.",
    "resume": "Resume a suspended instance.",
    "snapshot": "Copy the disk of an instance, list copies, or remove one.",
    "branch": "Copy a running instance with its memory and processes.",
    "destroy": "Destroy instances and check that no resource is left.",
    "gc": "Remove resources left by crashed runs, and what has expired.",
    "runs": "Show the history of runs: what passes at first, how long it takes, what is flaky.",
    "report": "Show the report of a run.",
    "events": "Print the events of a run.",
    "logs": "Print the console log of an instance.",
    "egress": "Show and test which connections an instance may open.",
    "ssh": "Open a shell in an instance, or run a command with a terminal.",
    "exec": "Run a command in an instance and return its exit code.",
    "cp": "Copy files to or from an instance.",
    "forward": "Forward a loopback port of this host to a port of an instance.",
    "ssh-config": "Print an OpenSSH configuration or an Ansible inventory.",
    "proxy": "Connect standard input and output to the SSH port of an instance.",
    "console": "Attach to the serial console of an instance.",
    "pull": "Fetch the commits of an instance into refs/ktrdr/.",
    "push": "Push commits and review comments into the repository of an instance.",
    "gate": "Run gates against a running instance.",
    "escalations": "List, approve, deny and revoke escalations.",
    "secrets": "List, rotate and revoke the secrets of an instance.",
    "attach": "Follow the output of the workload of an instance.",
    "bundle": "Create the pull-request bundle of a run.",
    "images": "Build, list and remove images.",
    "templates": "Build, list and remove the templates that instances are forked from.",
    "places": "List the places where runs can happen, or check one.",
    "submit": "Send a profile and its workspace to a place, as a request.",
    "queue": "List requests: their state, why they wait, node and attempt.",
    "watch": "Follow a request to its end.",
    "cancel": "Cancel requests.",
    "fetch": "Fetch the results of requests that have ended.",
    "run-request": "Run a request; what a place calls.",
    "serve": "Answer a client; what a connection calls.",
    "relay": "Run a command where an instance is; what a connection calls.",
    "stream": "Connect standard input and output to a port of an instance, or to its SFTP server.",
    "doctor": "Check that this host meets the requirements.",
    "metrics": "Print metrics in the text format of Prometheus.",
    "mcp": "Run an MCP server for coding agents; it cannot approve escalations.",
}


class _LazyGroup(click.Group):
    """Takes the help from the table above, so that a list of commands imports none of them."""

    def invoke(self, ctx: click.Context) -> object:
        result: object = 0
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            # click would exit with 1 and no message, which here means a failed gate.
            if not _is_unread():
                raise OSError(error.errno, "the other side closed the connection") from error
            # The reader closed the stream.
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
        # For man pages and completions, which would show the beginning of the help.
        command.short_help = _HELP[cmd_name]
        _add_debug_option(command)
        if cmd_name not in _OUTSIDE:
            _run_in_world(command)
        if cmd_name in _AT_PLACES:
            # Imported late: the other commands are about this host, or name a place themselves.
            from ktrdr_vm.cli.at_place import add_place_option

            add_place_option(command, (cmd_name,))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _HELP[name]) for name in _COMMANDS])


def _is_unread() -> bool:
    """True if the reader of standard output or of standard error has closed it."""
    import select

    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return bool(poll.poll(0))


def _start_debugging() -> None:
    # Imported late: not needed for help and most errors of the command line.
    from ktrdr_vm.cli.debug import print_programs

    print_programs()


def _take_debug_option(_context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        _start_debugging()


def _make_debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_take_debug_option,
        help="Print each program that is called to standard error, as a shell command. Also: KTRDR_VM_DEBUG=1.",
    )


def _add_debug_option(command: click.Command) -> None:
    """An option of every command, at any position."""
    if not any("--debug" in one.opts for one in command.params):
        command.params.append(_make_debug_option())
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_debug_option(inner)


def _run_in_world(command: click.Command) -> None:
    """Without root, let the command enter the world of this person before it does anything. Its help does not."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _run_in_world(inner)
    elif os.geteuid() != 0:
        invoke = command.invoke

        def enter_and_invoke(ctx: click.Context) -> object:
            from ktrdr_vm.world.own import enter_own_world

            # With --on PLACE it acts there.
            if not ctx.params.get("place_name"):
                enter_own_world()
            return invoke(ctx)

        command.invoke = enter_and_invoke  # type: ignore[method-assign]


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ktrdr-vm")
def cli() -> None:
    """Run coding agents and checks in disposable virtual machines, with enforced egress, recorded evidence and checked
    removal."""


_add_debug_option(cli)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command. `KeyboardInterrupt` itself, raised while generated code runs (as in a dataclass
    decorator), makes CPython exit by the signal instead of the exit code, even if it was caught."""


def main() -> None:
    """The entry point."""
    interrupts = 0

    def interrupt(number: int, _frame: object) -> None:
        nonlocal interrupts
        if number != signal.SIGINT and interrupts:
            # A terminal that closes sends SIGHUP more than once, and a service manager or a scheduler SIGTERM; only a
            # person's second Ctrl-C means at once.
            return
        interrupts += 1
        if interrupts > 1:
            # Interrupted a second time: stop immediately. `gc` removes what is left.
            os._exit(130)
        raise Interrupted

    def reach_limit(number: int, _frame: object) -> None:
        # Imported late: most commands need no more than help.
        from ktrdr_vm.errors import LimitReached

        # No second one, and nothing that programs which are started inherit, as they do what is ignored.
        signal.signal(number, lambda *_: None)
        raise LimitReached

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, interrupt)
    signal.signal(signal.SIGUSR1, reach_limit)
    # Imported late: most commands need only part of it.
    from ktrdr_vm.cli.output import show_error
    from ktrdr_vm.errors import HostError, KtrdrError
    from ktrdr_vm.host.owner import forbid_cores

    try:
        forbid_cores()
        if os.environ.get("KTRDR_VM_DEBUG", "0") not in ("", "0"):
            _start_debugging()
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
        # A file, a permission or a full disk: no traceback is needed.
        where = str(error.filename or "this host")
        show_error(
            HostError(
                error.strerror or str(error),
                where=where,
                hint="check that this path exists, its permissions and the free space",
            )
        )
        sys.exit(HostError.exit_code)


if __name__ == "__main__":
    main()
