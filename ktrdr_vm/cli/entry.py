"""Where the program `ktrdr-vm` begins. OpenSSH starts it for each connection, so `proxy` imports nothing of the other
commands."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import sys

_DESCRIPTOR = "--pass-descriptor"
# New objects after which the garbage collector searches for unreachable ones; the interpreter's default is 700.
_OBJECTS = 10_000


def main() -> None:
    """The entry point of the package."""
    open_streams()
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = make_remarks(sys.stderr)
    limit_collections()
    words = sys.argv[1:]
    if (
        words[:1] == ["proxy"]
        and len(rest := [word for word in words[1:] if word != _DESCRIPTOR]) == 1
        and not rest[0].startswith("-")
    ):
        _connect(rest[0], pass_descriptor=_DESCRIPTOR in words)
        return
    from ktrdr_vm.cli.main import main as run_command

    run_command()


def limit_collections() -> None:
    """Let the garbage collector run less often, and not at the end of the process.

    A command consists of modules, functions and classes, which are no garbage before its end. The interpreter would
    search all of them dozens of times while they are loaded, and twice more before it exits.
    """
    gc.set_threshold(_OBJECTS)
    # Registered first, so that it runs after everything else that ends with the process.
    atexit.register(gc.freeze)


def open_streams() -> None:
    """Open /dev/null in place of each standard stream that the caller closed.

    Otherwise the next file that is opened would be the standard output of this process and of the programs that it
    starts.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is used.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def make_remarks(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same standard error, except that a failed write is no error."""
    encoding, errors = stream.encoding, stream.errors
    return _Remarks(stream.detach(), encoding=encoding, errors=errors, line_buffering=True)


class _Remarks(io.TextIOWrapper):
    """A standard error that nobody can read, such as on a full disk or a pipe without a reader, loses what is said. It
    changes neither the work of a command nor its exit code."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _connect(instance_id: str, *, pass_descriptor: bool) -> None:
    from ktrdr_vm.cli.ssh_proxy import connect_streams
    from ktrdr_vm.errors import KtrdrError
    from ktrdr_vm.host.owner import forbid_cores

    forbid_cores()
    try:
        if os.geteuid() != 0:
            from ktrdr_vm.host.paths import find_home
            from ktrdr_vm.world.enter import enter_existing

            enter_existing(find_home().root)
        connect_streams(instance_id, pass_descriptor=pass_descriptor)
    except KtrdrError as error:
        from ktrdr_vm.cli.output import show_error

        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
