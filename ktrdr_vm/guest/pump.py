"""Moves bytes between one command in the guest and the host, both ways at once, within limits."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ktrdr_vm.guest.envelope import ANNOUNCEMENT_WITHIN, RemoteProcess, find_announcement

# Seconds without output after the end of a command, after which a child that keeps the streams open is ignored.
_DRAIN_S = 0.5
# How long a child that goes on printing is read on, where what it prints is not asked for.
LINGER = 5.0
# What a handshake may need at most; paramiko itself bounds no banner line.
_HANDSHAKE_BYTES = 512 * 1024
# The longest packet. RFC 4253 requires 35,000 bytes; paramiko would read any length that a packet announces.
_PACKET_BYTES = 256 * 1024
# Limit of unread bytes of all channels; a conforming server sends at most 2 MiB on each.
_UNREAD_BYTES = 64 * 1024 * 1024


class LimitedSocket:
    """A socket that limits the bytes before the guest is authenticated, and the unread bytes afterwards.

    Its errors have an errno: without one the thread of paramiko dies before it has notified the callers.
    """

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._left: int | None = _HANDSHAKE_BYTES
        self._count_unread: Callable[[], int] = lambda: 0

    def end_handshake(self, count_unread: Callable[[], int]) -> None:
        """From now on limit the unread bytes. paramiko announces a window, and accepts more than it."""
        self._left = None
        self._count_unread = count_unread

    def recv(self, count: int) -> bytes:
        """At most `count` bytes. paramiko reads the rest of a packet in one call, so a large `count` means a large
        packet."""
        if count > _PACKET_BYTES:
            raise OSError(errno.EMSGSIZE, f"the guest announced an SSH packet of {count} bytes")
        if self._count_unread() > _UNREAD_BYTES:
            raise OSError(errno.EMSGSIZE, "the guest sent more data than requested")
        data = self._inner.recv(count)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise OSError(errno.EMSGSIZE, "the guest sent too much data before the end of the SSH handshake")
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


class Stream(Protocol):
    """The received bytes of one stream; the event is set while there is data, and at the end."""

    def set_event(self, event: threading.Event) -> None: ...
    def __len__(self) -> int: ...


class Channel(Protocol):
    """The part of an SSH channel that is used here."""

    closed: bool
    eof_received: int
    status_event: threading.Event

    @property
    def in_buffer(self) -> Stream: ...
    @property
    def in_stderr_buffer(self) -> Stream: ...
    def exit_status_ready(self) -> bool: ...
    def recv_exit_status(self) -> int: ...
    def recv_ready(self) -> bool: ...
    def recv(self, nbytes: int) -> bytes: ...
    def recv_stderr_ready(self) -> bool: ...
    def recv_stderr(self, nbytes: int) -> bytes: ...
    def sendall(self, s: bytes) -> None: ...
    def shutdown_write(self) -> None: ...


@dataclass(frozen=True)
class Reading:
    """How a command's output is read: bytes kept of its error stream, a callback for that stream, and seconds of
    reading after its end."""

    max_stderr: int = 64 * 1024
    on_stderr: Callable[[bytes], None] | None = None
    linger: float | None = None


class RunningCommand:
    """A running command: splits off the announcement, limits the output, and detects the end."""

    def __init__(self, token: bytes, on_stdout: Callable[[bytes], None], reading: Reading) -> None:
        self.process: RemoteProcess | None = None
        self.exit_code = -1
        self.stderr = bytearray()
        self.truncated = False
        self.left_open = False
        self._token = token
        self._on_stdout = on_stdout
        self._reading = reading
        self._head: bytearray | None = bytearray()

    def pump(self, channel: Channel, deadline: float) -> bool:
        """Read both streams until the end; False if the deadline passed first."""
        idle_since: float | None = None
        over_since: float | None = None
        # An event and not `fileno()`: that is a pipe, and a channel that is closed under a flood closes its reading end
        # first. The transport's thread then meets EPIPE, takes it for its socket's and gives the whole connection up.
        arrived = threading.Event()
        channel.in_buffer.set_event(arrived)
        channel.in_stderr_buffer.set_event(arrived)
        while True:
            moved = self._drain(channel)
            now = time.monotonic()
            if channel.exit_status_ready() or channel.closed:
                # A background child may keep the streams open; the command has ended nevertheless.
                idle_since = now if moved or idle_since is None else idle_since
                over_since = now if over_since is None else over_since
                self.left_open = moved and self._reading.linger is not None and now - over_since > self._reading.linger
                if self.left_open or (
                    not moved and (channel.eof_received or channel.closed or now - idle_since > _DRAIN_S)
                ):
                    self._end_of_head()
                    if not channel.exit_status_ready():
                        raise EOFError("the channel was closed without an exit code")
                    self.exit_code = channel.recv_exit_status()
                    return True
            if now >= deadline:
                return False
            if moved:
                continue
            if channel.eof_received:
                channel.status_event.wait(min(0.05, deadline - now))
            else:
                arrived.wait(min(0.1, deadline - now))

    def _drain(self, channel: Channel) -> bool:
        moved = False
        if channel.recv_ready() and (data := channel.recv(1 << 20)):
            self._take_stdout(data)
            moved = True
        if channel.recv_stderr_ready() and (data := channel.recv_stderr(1 << 20)):
            room = self._reading.max_stderr - len(self.stderr)
            self.stderr.extend(data[:room])
            self.truncated = self.truncated or len(data) > room
            if self._reading.on_stderr is not None:
                self._reading.on_stderr(data)
            moved = True
        return moved

    def _take_stdout(self, data: bytes) -> None:
        if self._head is None:
            self._on_stdout(data)
            return
        self._head.extend(data)
        found = find_announcement(bytes(self._head), self._token)
        if found is not None:
            self.process, rest = found
            self._head = None
            if rest:
                self._on_stdout(rest)
        elif len(self._head) > ANNOUNCEMENT_WITHIN:
            self._end_of_head()

    def _end_of_head(self) -> None:
        """Without an announcement, for example because sudo refused, the held back bytes are normal output."""
        held, self._head = self._head, None
        if held:
            self._on_stdout(bytes(held))


def feed(channel: Channel, head: bytes, source: BinaryIO) -> None:
    """Write standard input in a thread, so that a command that writes output while it reads input causes no
    deadlock."""
    with contextlib.suppress(Exception):
        channel.sendall(head)
        while data := source.read(1 << 16):
            channel.sendall(data)
        channel.shutdown_write()
