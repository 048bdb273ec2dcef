"""The only file that starts programs: an argument list, closed standard input, an explicit environment, and a time
limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from ktrdr_vm.errors import HostError, ProvisionError, keep_end
from ktrdr_vm.host.program_call import ProgramCall

# Programs are searched in system folders, never in the PATH of the caller, which with sudo belongs to the user.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds for the remaining output of a killed program.
_DRAIN = 5.0
_ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
# Folders for sys.path, then a module, whose `main` is called with the following words as sys.argv[1:].
_MAIN = (
    "import sys; sys.path += sys.argv[1].split(':'); del sys.argv[:2]; __import__(sys.argv[0],"
    " fromlist=['main']).main()"
)


@dataclass(frozen=True)
class Completed:
    """The result of a process. `exit_code` is negative for a signal, as in `subprocess`."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        return self.stderr.decode("utf-8", "replace").strip()


class Descriptors(NamedTuple):
    """Files of this process that a program gets: one for its standard output, and those that it names in its words."""

    stdout: int | None = None
    passed: tuple[int, ...] = ()


class Streams(NamedTuple):
    """The standard streams of a program that is started: descriptors, files, or constants of `subprocess`."""

    stdin: int = subprocess.DEVNULL
    stdout: int | IO[bytes] = subprocess.DEVNULL
    stderr: int | IO[bytes] = subprocess.DEVNULL


PIPED, NOWHERE = Descriptors(), Streams()
Owner = tuple[int, int]
"""User and group."""

# Precedes the words of a program that creates something: if its caller is killed, it must not create the object after
# the next `gc`. The thread that starts it must wait for it.
DIES_WITH_CALLER = ("setpriv", "--pdeathsig", "KILL", "--")

# Programs that limit the one in their last words.
_LIMITING = ("setpriv", "prlimit")
_LIMIT_SIGNALS = {"SIGXCPU": " (its limit of CPU time)", "SIGXFSZ": " (its limit of the size of a file)"}

_observers: list[Callable[[ProgramCall], None]] = []
_secrets: set[bytes] = set()


def observe(observer: Callable[[ProgramCall], None]) -> None:
    """Call `observer` with every program that this process calls from now on: at its end, or at its start if it keeps
    running."""
    _observers.append(observer)


def hide_secret(value: bytes) -> None:
    """Register the value of a secret, so that observers mask it."""
    _secrets.add(value)


def list_hidden() -> frozenset[bytes]:
    return frozenset(_secrets)


def notify_observers(call: ProgramCall) -> None:
    for observer in _observers:
        observer(call)


def _find_ids(owner: Owner | None) -> tuple[int, int] | tuple[None, None]:
    return owner if owner is not None and os.geteuid() == 0 and owner[0] != 0 else (None, None)


def find_program(name: str) -> Path | None:
    """The absolute path of a program in the system's directories, or None."""
    found = shutil.which(name, path=SYSTEM_PATH)
    return Path(found) if found else None


def require_program(name: str) -> Path:
    found = find_program(name)
    if found is None:
        raise HostError(
            f"the program {name} is not installed",
            hint="`ktrdr-vm doctor` lists all that is missing, and how to install it",
        )
    return found


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    owner: Owner | None = None,
    descriptors: Descriptors = PIPED,
) -> Completed:
    """Run to the end. `timeout` in seconds; on overrun the whole process group is killed.

    With `check`, an exit code other than 0 is a ProvisionError that carries the end of standard error. `environment` is
    added to a minimal one; nothing is inherited from the caller. Root runs it as `owner`, another user as itself.
    """
    user, group = _find_ids(owner)
    arguments = [str(word) for word in argv]
    # Errors name the program that does the work; the system's directories are searched too.
    first = _find_first(arguments)
    name, shown = arguments[first], " ".join(arguments[first:])[:200]
    arguments[first] = name if "/" in name else str(require_program(name))
    program = arguments[0] if "/" in arguments[0] else str(require_program(arguments[0]))
    call = ProgramCall(
        (program, *arguments[1:]), cwd, user, group, dict(environment or {}), len(stdin), descriptors.passed
    )
    try:
        started = subprocess.Popen(
            call.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if descriptors.stdout is None else descriptors.stdout,
            stderr=subprocess.PIPE,
            env={**_ENVIRONMENT, **(environment or {})},
            cwd=cwd,
            pass_fds=descriptors.passed,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            start_new_session=True,
        )
    except OSError as error:
        notify_observers(replace(call, outcome=f"cannot be started: {error.strerror}"))
        # The cause can also be the folder, if the user of the program may not enter it.
        raise HostError(
            f"{name} cannot be started{f' in {cwd}' if cwd else ''}: {error.strerror}",
            where=shown,
            hint=(
                "check the permissions of the folder and of those above it"
                if cwd
                else "`ktrdr-vm doctor` checks the host"
            ),
        ) from None
    with started as process:
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except BaseException as stopped:
            _kill_group(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # A child in another session may keep the streams open; there is no wait for it.
                process.communicate(timeout=_DRAIN)
            notify_observers(replace(call, outcome=f"killed after {timeout:g} s" if _is_overrun(stopped) else "killed"))
            if _is_overrun(stopped):
                raise ProvisionError(
                    f"{name} did not end within {timeout:g} s",
                    where=shown,
                    hint="check the load of the host, then try again",
                ) from None
            raise
    completed = Completed(tuple(arguments), process.returncode, out or b"", err or b"")
    notify_observers(replace(call, outcome=f"exit code {completed.exit_code}"))
    if check and completed.exit_code != 0:
        tail = keep_end(completed.error_text, 2000) or keep_end(completed.text, 2000).strip() or "no message"
        raise ProvisionError(
            f"{name} {_describe_end(completed.exit_code)}: {tail}",
            where=shown,
            hint="the message above is from the program",
        )
    return completed


def start(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    streams: Streams = NOWHERE,
    owner: Owner | None = None,
    in_child: Callable[[], None] | None = None,
    new_session: bool = True,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start and return at once. The caller must wait for the process, or let it outlive itself on purpose. `owner` as
    for `run`."""
    user, group = _find_ids(owner)
    arguments = [str(word) for word in argv]
    program = arguments[0] if "/" in arguments[0] else str(require_program(arguments[0]))
    call = ProgramCall((program, *arguments[1:]), cwd, user, group, dict(environment or {}), 0, tuple(pass_fds))
    started = subprocess.Popen(
        call.argv,
        stdin=streams.stdin,
        stdout=streams.stdout,
        stderr=streams.stderr,
        env={**_ENVIRONMENT, **(environment or {})},
        pass_fds=tuple(pass_fds),
        cwd=cwd,
        user=user,
        group=group,
        extra_groups=None if user is None else [],
        preexec_fn=in_child,
        start_new_session=new_session,
    )
    notify_observers(replace(call, outcome=f"started as process {started.pid}"))
    return started


def start_module(
    module: str, words: Sequence[str | Path], *, launcher: Sequence[str] = (), **options: Any
) -> subprocess.Popen[bytes]:
    """Start the `main` of a module of this program as a process. `options` are those of `start`; it runs in /. The
    words of `launcher` precede it: a program that executes it.

    Isolated: imports do not depend on variables, on folders of the user or on the current folder, which may be an
    untrusted branch. Without `site`, because its hooks for an editable installation take longer than the start of the
    guard. It writes no bytecode.
    """
    python = [sys.executable, "-I", "-S", "-B", "-c", _MAIN, _module_folders(), module]
    return start([*launcher, *python, *words], cwd=Path("/"), **options)


def _module_folders() -> str:
    if sys.flags.no_site:
        # In a process of `start_module`, the value is that of the first process.
        return sys.orig_argv[sys.orig_argv.index(_MAIN) + 1]
    return ":".join(dict.fromkeys([str(Path(__file__).resolve().parents[2]), *site.getsitepackages()]))


def _find_first(arguments: Sequence[str]) -> int:
    """The index of the program that does the work, after those that limit it; `--` ends the words of each."""
    first = 0
    while arguments[first] in _LIMITING and "--" in arguments[first:]:
        first = arguments.index("--", first) + 1
    return first


def _describe_end(exit_code: int) -> str:
    if exit_code >= 0:
        return f"failed with exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    return f"was ended by {name}{_LIMIT_SIGNALS.get(name, '')}"


def _is_overrun(stopped: BaseException) -> bool:
    return isinstance(stopped, subprocess.TimeoutExpired)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
