"""`mcp`: the commands that are safe for an agent, over the Model Context Protocol. Approval is deliberately not among
them.

Two processes: one without privileges communicates with the client (mcp_speaker), and this one runs the tools
(mcp_tools), each call in a separate process. A call ends when its client cancels it; then, as after Ctrl-C, the
instance that it created is destroyed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import traceback
from pathlib import Path

import click

from ktrdr_vm.cli.mcp_tools import answer, encode, receive_request
from ktrdr_vm.cli.options import folder

_NOBODY = 65534
# Concurrent calls; each is a process, and an `apply` also a VM.
MOST_CALLS = 32


@click.command()
@click.option("--workspace", type=folder, default=Path(), help="The only repository it works on.")
def mcp(workspace: Path) -> None:
    """Serve plan, apply, exec, gate, report and the state of escalations on standard input and output."""
    from ktrdr_vm.cli.mcp_speaker import require_package
    from ktrdr_vm.host import process

    require_package()
    workspace = workspace.resolve()
    uid, gid = find_speaker(workspace)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        speaker = process.start_module(
            "ktrdr_vm.cli.mcp_speaker",
            [str(uid), str(gid), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            streams=process.Streams(0, 1, 2),
            new_session=False,
        )
    # Only the speaker uses the connection of the client.
    with Path(os.devnull).open("r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    with ours:
        Calls(ours, workspace).serve()
    raise SystemExit(speaker.wait())


def find_speaker(workspace: Path) -> tuple[int, int]:
    """uid and gid of the person: the caller of sudo, else the owner of the workspace; `nobody` if both are root."""
    from ktrdr_vm.host.owner import find_owner

    owner = find_owner()
    if owner[0] == 0:
        facts = workspace.stat()
        owner = (facts.st_uid, facts.st_gid)
    return owner if owner[0] else (_NOBODY, _NOBODY)


class Calls:
    """The running calls, each in a process. A connection for each call arrives on `channel`, which the speaker closes
    at its end."""

    def __init__(self, channel: socket.socket, workspace: Path) -> None:
        self._channel = channel
        self._workspace = workspace
        self._poll = select.poll()
        # Descriptor of the process to its pid and our end of the connection.
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._pids: dict[int, int] = {}

    def serve(self) -> None:
        """Serve until the speaker ends or this process is interrupted; running calls are then interrupted, and their
        end is awaited."""
        self._poll.register(self._channel, select.POLLIN)
        try:
            while self._answer_events():
                pass
        finally:
            # One that was given up is ending already, and a second signal would cut that short.
            for pid in self._pids.values():
                os.kill(pid, signal.SIGINT)
            for handle in list(self._running):
                self._reap(handle)

    def _answer_events(self) -> bool:
        """Wait for one event and handle it. False if the speaker has ended."""
        for descriptor, _ in self._poll.poll():
            if descriptor == self._channel.fileno():
                received, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
                if not received or not descriptors:
                    return False
                self._start(socket.socket(fileno=descriptors[0]))
            elif descriptor in self._running:
                self._reap(descriptor)
            elif descriptor in self._pids:
                # The client has cancelled the call.
                self._poll.unregister(descriptor)
                os.kill(self._pids.pop(descriptor), signal.SIGINT)
        return True

    def _start(self, connection: socket.socket) -> None:
        if len(self._running) >= MOST_CALLS:
            _refuse(connection, f"{MOST_CALLS} calls are running already\nnext: wait until one has ended")
            return
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(
                connection, f"the host starts no process: {error.strerror}\nnext: wait until other calls have ended"
            )
            return
        if pid == 0:
            self._become_call(connection)
        handle = os.pidfd_open(pid)
        self._running[handle] = (pid, connection)
        self._pids[connection.fileno()] = pid
        self._poll.register(handle, select.POLLIN)
        self._poll.register(connection, select.POLLRDHUP)

    def _become_call(self, connection: socket.socket) -> None:
        code = 1
        try:
            # A Ctrl-C is for the server, which tells each call once.
            os.setpgid(0, 0)
            self._channel.close()
            for handle, (_, other) in self._running.items():
                os.close(handle)
                other.close()
            connection.sendall(answer(self._workspace, receive_request(connection)))
            code = 0
        except KeyboardInterrupt:
            code = 130
        except Exception:  # a bug of this program: the client is notified that there is no answer
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self, handle: int) -> None:
        pid, connection = self._running.pop(handle)
        os.waitpid(pid, 0)
        self._poll.unregister(handle)
        os.close(handle)
        if self._pids.pop(connection.fileno(), None) is not None:
            self._poll.unregister(connection)
        connection.close()


def _refuse(connection: socket.socket, reason: str) -> None:
    """Answer a call that is not run. Its client may have cancelled it already, which ends no other call."""
    with connection, contextlib.suppress(OSError):
        connection.sendall(encode({"error": reason}))
