"""The only place where a process is started: list arguments, closed standard input, explicit environment, a limit always."""

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
from typing import IO, Any

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host.program_call import ProgramCall

# Tools are looked up in the system's places, never in the caller's PATH: under sudo that one is the user's.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds for what a killed program's streams still hold.
_DRAIN = 5.0
_ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
# Folders to look for modules in, after Python's own; then a module, whose `main` is called with the words behind it as sys.argv[1:].
_MAIN = "import sys; sys.path += sys.argv[1].split(':'); del sys.argv[:2]; __import__(sys.argv[0], fromlist=['main']).main()"


@dataclass(frozen=True)
class Completed:
    """How a process ended. `exit_code` is negative for a signal, as in `subprocess`."""

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


_observers: list[Callable[[ProgramCall], None]] = []
_secrets: set[bytes] = set()


def observe(observer: Callable[[ProgramCall], None]) -> None:
    """Call `observer` with every program that this process calls from now on: at its end, or when it has been started to run on."""
    _observers.append(observer)


def hide_secret(value: bytes) -> None:
    """Say that this process knows a secret's value, which whoever shows calls masks."""
    _secrets.add(value)


def list_hidden() -> frozenset[bytes]:
    return frozenset(_secrets)


def notify_observers(call: ProgramCall) -> None:
    for observer in _observers:
        observer(call)


def find_program(name: str) -> Path | None:
    """The absolute path of a program in the system's directories, or None."""
    found = shutil.which(name, path=SYSTEM_PATH)
    return Path(found) if found else None


def require_program(name: str) -> Path:
    found = find_program(name)
    if found is None:
        raise HostError(f"the program {name} is not installed", hint="run `make setup`, or `ktrdr-vm doctor` to see all that is missing")
    return found


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    user: int | None = None,
    group: int | None = None,
    stdout: IO[bytes] | int | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run to the end. `timeout` in seconds; on overrun the whole process group is killed.

    With `check`, an exit code other than 0 is a ProvisionError that carries the end of standard error. `environment` is
    added to a minimal one; nothing of the caller's is inherited.
    """
    arguments = [str(word) for word in argv]
    program = arguments[0] if "/" in arguments[0] else str(require_program(arguments[0]))
    call = ProgramCall((program, *arguments[1:]), cwd, user, group, dict(environment or {}), len(stdin), tuple(pass_fds))
    try:
        started = subprocess.Popen(
            call.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env={**_ENVIRONMENT, **(environment or {})},
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            start_new_session=True,
        )
    except OSError as error:
        notify_observers(replace(call, outcome=f"cannot be started: {error.strerror}"))
        # Not only the program: the folder may be closed to the user that it is to run as.
        raise HostError(
            f"{arguments[0]} cannot be started{f' in {cwd}' if cwd else ''}: {error.strerror}",
            where=" ".join(arguments)[:200],
            hint="look at the rights of the folder and of those above it" if cwd else "`ktrdr-vm doctor` checks the host",
        ) from None
    with started as process:
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except BaseException as stopped:
            _kill_group(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # A child in a session of its own may hold the streams open: it is not waited for.
                process.communicate(timeout=_DRAIN)
            notify_observers(replace(call, outcome=f"killed after {timeout:g} s" if _is_overrun(stopped) else "killed"))
            if _is_overrun(stopped):
                raise ProvisionError(
                    f"{arguments[0]} did not end within {timeout:g} s",
                    where=" ".join(arguments)[:200],
                    hint="look at the load of the host, then try again",
                ) from None
            raise
    completed = Completed(tuple(arguments), process.returncode, out or b"", err or b"")
    notify_observers(replace(call, outcome=f"exit code {completed.exit_code}"))
    if check and completed.exit_code != 0:
        tail = completed.error_text[-2000:] or completed.text[-2000:].strip() or "no message"
        raise ProvisionError(
            f"{arguments[0]} failed with exit code {completed.exit_code}: {tail}",
            where=" ".join(arguments)[:200],
            hint="the message above is the program's own",
        )
    return completed


def start(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    user: int | None = None,
    group: int | None = None,
    in_child: Callable[[], None] | None = None,
    new_session: bool = True,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start and return at once. The caller owns the process: it must wait for it, or outlive it on purpose."""
    arguments = [str(word) for word in argv]
    program = arguments[0] if "/" in arguments[0] else str(require_program(arguments[0]))
    call = ProgramCall((program, *arguments[1:]), cwd, user, group, dict(environment or {}), 0, tuple(pass_fds))
    started = subprocess.Popen(
        call.argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
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


def start_module(module: str, words: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
    """The `main` of a module of this program, as a process of its own. `options` are those of `start`; it runs in /.

    Isolated: no variable, no user's folder and not the current one, which may be an untrusted branch, says what is imported. Without
    `site`: an editable installation is found by programs that take longer to start than the guard. It writes no bytecode.
    """
    return start([sys.executable, "-I", "-S", "-B", "-c", _MAIN, _module_folders(), module, *words], cwd=Path("/"), **options)


def _module_folders() -> str:
    if sys.flags.no_site:
        # Started by `start_module` itself: what the first one found.
        return sys.orig_argv[sys.orig_argv.index(_MAIN) + 1]
    return ":".join(dict.fromkeys([str(Path(__file__).resolve().parents[2]), *site.getsitepackages()]))


def _is_overrun(stopped: BaseException) -> bool:
    return isinstance(stopped, subprocess.TimeoutExpired)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
