"""The form in which commands are sent to the guest, so that no argv in it contains an environment, a secret or a
script.

The remote argv is always the same few words: a shell that reads a given number of bytes from its standard input and
evaluates them. Those bytes contain directory, environment and command; the bytes after them are the standard input of
the command. The shell first prints a line, recognised by a random token, with its process, process group and session,
so that a command that exceeds its limit can be killed with its children.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ktrdr_vm.guest.protocol import GuestRefusedError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Bytes of output that a login shell may print before the announcement.
ANNOUNCEMENT_WITHIN = 64 * 1024


@dataclass(frozen=True)
class Envelope:
    """`remote` is the command line for sshd, `head` the beginning of its standard input."""

    remote: str
    head: bytes
    token: bytes


@dataclass(frozen=True)
class RemoteProcess:
    """The ids by which a command in the guest can be killed with its children."""

    pid: int
    group: int
    session: int


def make_envelope(
    command: Sequence[str] | str, *, token: str, environment: Mapping[str, str] | None, chdir: str | None, elevate: bool
) -> Envelope:
    """Pack a command. A list is quoted word by word; a string is a line for /bin/sh. `elevate` goes through `sudo
    -n`."""
    for name, value in (environment or {}).items():
        if not _NAME.match(name) or "\0" in value:
            raise GuestRefusedError(
                f"{name!r} cannot be an environment variable", hint="use letters, digits and _, and no NUL"
            )
    line = command if isinstance(command, str) else " ".join(shlex.quote(word) for word in command)
    if "\0" in line or "\0" in (chdir or "") or not line.strip():
        raise GuestRefusedError(
            "a command for the guest is empty or contains a NUL byte", hint="use at least one word, without NUL"
        )
    script = [f"read -r _p _c _s _q _g _n _r </proc/self/stat && echo {token} $_p $_g $_n"]
    script += [f"export {name}={shlex.quote(value)}" for name, value in sorted((environment or {}).items())]
    if chdir is not None:
        script.append(f"cd -- {shlex.quote(chdir)} || exit 1")
    # `eval` of a variable and not of the text, so that an open quote in the command does not include the lines around
    # it.
    script += [f"_l={shlex.quote(line)}", "unset _p _c _s _q _g _n _r", 'eval "unset _l\n$_l"', "exit $?"]
    head = ("\n".join(script) + "\n").encode("utf-8", "surrogateescape")
    remote = f"exec /bin/sh -c 'eval \"$(head -c {len(head)})\"'"
    if elevate:
        remote = f"exec sudo -n -- /bin/sh -c 'eval \"$(head -c {len(head)})\"'"
    return Envelope(remote, head, token.encode())


def find_announcement(output: bytes, token: bytes) -> tuple[RemoteProcess, bytes] | None:
    """The announced process and the output after it; None without an announcement (yet)."""
    found = re.search(re.escape(token) + rb" (\d{1,10}) (\d{1,10}) (\d{1,10})\n", output[: ANNOUNCEMENT_WITHIN + 100])
    if found is None:
        return None
    pid, group, session = (int(number) for number in found.groups())
    return RemoteProcess(pid, group, session), output[found.end() :]


def make_kill_command(process: RemoteProcess) -> list[str]:
    """The command that kills a session and group, with SIGTERM and then SIGKILL. Never pid 0, 1 or -1."""
    targets = f"-s {process.session}" if process.session > 1 else f"-g {process.group}"
    numbers = f"kill -%s -- -{process.group} 2>/dev/null; pkill -%s {targets} 2>/dev/null"
    if process.group <= 1 or process.pid <= 1:
        return ["true"]
    return ["/bin/sh", "-c", f"{numbers % ('TERM', 'TERM')}; sleep 0.3; {numbers % ('KILL', 'KILL')}; true"]
