"""The SSH connection to the guest: paramiko with a host key that the host created and pinned. The only importer of
paramiko.

Nothing of the user's SSH configuration is used: no agent, no ~/.ssh, no known_hosts, no X11, no forwarding. The guest
is hostile from its first byte, so everything read from it is bounded in time and size, also during the handshake.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import shlex
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, cast

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.envelope import RemoteProcess, make_envelope, make_kill_command
from ktrdr_vm.guest.protocol import Guest, GuestRefusedError, GuestResult, GuestTimeout
from ktrdr_vm.guest.pump import LINGER, Channel, LimitedSocket, Reading, RunningCommand, feed
from ktrdr_vm.host import netns
from ktrdr_vm.host.keys import generate_keypair

__all__ = ["Guest", "GuestRefusedError", "GuestResult", "GuestTimeout", "SshGuest", "connect", "generate_keypair"]

# Without a handler Python prints messages of paramiko, which contain bytes of the guest, to the terminal.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False

_POLL_S = 0.03
_CONNECT_S = 0.25
_HANDSHAKE_S = 30.0
# MaxSessions of OpenSSH is 10; some are reserved for killing commands that exceed their limit.
_SESSIONS = 8
_TCP_USER_TIMEOUT_MS = 60_000

_KEX = ("curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
# Without SHA instructions, a 64-bit CPU computes SHA-512 in 40 % of the time of SHA-256, which matters for large files.
_MACS = ("hmac-sha2-512-etm@openssh.com", "hmac-sha2-512", "hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")


class Transport(paramiko.Transport):
    """The transport of paramiko, whose thread parses what the guest sends. Whatever ends that thread reaches callers as
    one of the errors that they expect: an empty packet raises IndexError there."""

    def _parse_debug(self, _message: paramiko.Message) -> None:
        """A message for a log that nobody reads is dropped. paramiko would spend five minutes on one of 20 bytes that
        claims to be 1 MiB long."""

    def get_exception(self) -> Exception | None:
        error: Exception | None = super().get_exception()
        if error is None or isinstance(error, OSError | EOFError | paramiko.SSHException):
            return error
        return paramiko.SSHException(f"the guest sent what is not SSH ({type(error).__name__}: {error})")


class _SwappedKey(GuestError):
    """The host key is not the pinned one; a retry cannot succeed."""


def connect(
    address: tuple[str, int],
    user: str,
    private_key: str,
    pinned_host_key: str,
    *,
    timeout: float,
    instance_id: str,
    namespace: str = "",
    proceed: Callable[[], None] | None = None,
) -> SshGuest:
    """Poll until an authenticated command succeeds; GuestError after `timeout` seconds.

    `pinned_host_key` is a public line; another key is refused immediately. The address is one of the network
    `namespace`, or of where this process is. `proceed` is called before every attempt and may
    raise to end the wait (the domain ended, Ctrl-C).
    """
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(private_key))
    deadline = time.monotonic() + timeout
    last = "no SSH server answered"
    while (left := deadline - time.monotonic()) > 0:
        if proceed is not None:
            proceed()
        try:
            dial = functools.partial(netns.connect, namespace, address)
            return _attempt(dial, user, key, pinned_host_key, left=left, instance_id=instance_id)
        except _SwappedKey:
            raise
        except (OSError, EOFError, paramiko.SSHException, GuestError) as error:
            last = str(error) or type(error).__name__
        time.sleep(min(_POLL_S, max(deadline - time.monotonic(), 0)))
    raise GuestError(
        f"the guest did not answer over SSH within {timeout:g} s; the last attempt: {last!r}",
        where=instance_id,
        hint="check the console.log of the instance: it shows how far the guest booted",
    )


def _attempt(
    dial: Callable[[float], socket.socket], user: str, key: paramiko.PKey, pinned: str, *, left: float, instance_id: str
) -> SshGuest:
    """One new TCP connection: handshake, pinned key, login, one command. Everything is closed if a step fails."""
    deadline = time.monotonic() + min(left, _HANDSHAKE_S)
    plain = dial(min(_CONNECT_S, left))
    transport: paramiko.Transport | None = None
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_MS)
        limited = LimitedSocket(plain)
        transport = Transport(cast(socket.socket, limited))
        options = transport.get_security_options()
        options.key_types = ("ssh-ed25519",)
        # The connection uses a tap of this host and no network, so a recording for a later quantum computer is no
        # threat, and a post-quantum key exchange takes an emulated guest a second.
        options.kex = _KEX
        options.digests = _MACS
        wait = max(deadline - time.monotonic(), 0.05)
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = wait
        transport.start_client(timeout=wait)
        if not transport.initial_kex_done:
            raise OSError("the SSH handshake did not end in time")
        shown = transport.get_remote_server_key()
        if [shown.get_name(), shown.get_base64()] != pinned.split()[:2]:
            raise _SwappedKey(
                "the guest presented an SSH host key other than the one created for it (ssh-ed25519"
                f" {shown.get_base64()[:24]}…)",
                where=instance_id,
                hint="no data was sent; destroy the instance, because another server answers at its address",
            )
        transport.auth_publickey(user, key)
        guest = SshGuest(transport, user=user, instance_id=instance_id)
        guest.run(["true"], timeout=max(deadline - time.monotonic(), 0.05))
        limited.end_handshake(guest.count_unread)
        transport.set_keepalive(10)
        return guest
    except IncompatiblePeer as error:
        # sshd reads its keys once, so a server without ed25519 does not have the created key.
        if "host key" in str(error):
            raise _SwappedKey(
                "the guest has no ed25519 SSH host key, so it does not have the one created for it",
                where=instance_id,
                hint="no data was sent; check in console.log whether cloud-init wrote the key",
            ) from None
        _close(transport, plain)
        raise
    except BaseException:
        _close(transport, plain)
        raise


def _close(transport: paramiko.Transport | None, plain: socket.socket) -> None:
    # The socket first: the reader of paramiko may be in recv, and closing the transport waits for it.
    with contextlib.suppress(OSError):
        plain.shutdown(socket.SHUT_RDWR)
    plain.close()
    if transport is not None:
        transport.close()


class SshGuest:
    """One transport, many channels at a time; safe to use from several threads. Close it, or use it in a `with`."""

    def __init__(self, transport: paramiko.Transport, *, user: str, instance_id: str) -> None:
        self._transport = transport
        self._user = user
        self._instance_id = instance_id
        self._sessions = threading.BoundedSemaphore(_SESSIONS)
        # Including channels that were closed here, because the guest may continue to send on them.
        self._channels: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()

    def __enter__(self) -> SshGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """True if the connection is open on this side."""
        return bool(self._transport.is_active())

    def close(self) -> None:
        self._transport.close()

    def count_unread(self) -> int:
        """Received bytes that were not read yet."""
        return sum(len(channel.in_buffer) + len(channel.in_stderr_buffer) for channel in tuple(self._channels))

    def _open_channel(self, timeout: float) -> paramiko.Channel:
        channel = self._transport.open_session(timeout=timeout)
        self._channels.add(channel)
        return channel

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        chdir: str | None = None,
        become: bool = False,
        max_output: int = 10 * 1024 * 1024,
        on_output: Callable[[bytes], None] | None = None,
    ) -> GuestResult:
        """See `Guest.run`. `max_output` limits each of the two streams; further output is discarded."""
        kept, cut = bytearray(), []

        def keep(data: bytes) -> None:
            room = max_output - len(kept)
            kept.extend(data[:room])
            if len(data) > room:
                cut.append(True)
            if on_output is not None:
                on_output(data)

        done = self._execute(
            command, io.BytesIO(stdin), keep, timeout=timeout, environment=environment, chdir=chdir, become=become,
            reading=Reading(max_output, on_output, LINGER),
        )  # fmt: skip
        return GuestResult(done.exit_code, bytes(kept), bytes(done.stderr), bool(cut) or done.truncated, done.left_open)

    def upload(
        self, source: BinaryIO, destination: str, *, mode: int = 0o644, become: bool = False, timeout: float = 600
    ) -> None:
        """See `Guest.upload`. `destination` is absolute or relative to the user's home; a directory is refused."""
        script = (
            f"umask 077; d={shlex.quote(destination)}; [ ! -d \"$d\" ] || {{ echo 'is a directory' >&2; exit 1; }}; "
            't=$(mktemp -- "$(dirname -- "$d")/.upload.XXXXXXXX") || exit 1; trap \'rm -f -- "$t"\' EXIT; '
            f'cat >"$t" && chmod {mode & 0o7777:04o} -- "$t" && mv -fT -- "$t" "$d"'
        )
        done = self._execute(script, source, lambda _: None, timeout=timeout, become=become)
        if done.exit_code != 0:
            raise self._refused(f"writing {destination!r} in the guest failed", bytes(done.stderr))

    def send(
        self,
        command: Sequence[str] | str,
        source: BinaryIO,
        *,
        environment: Mapping[str, str] | None = None,
        become: bool = False,
        timeout: float = 600,
    ) -> None:
        """See `Guest.send`."""
        done = self._execute(command, source, lambda _: None, timeout=timeout, environment=environment, become=become)
        if done.exit_code != 0:
            raise self._refused("what was sent to the guest was not taken", bytes(done.stderr))

    def download(self, path: str, sink: BinaryIO, *, max_bytes: int, become: bool = False, timeout: float = 600) -> int:
        """See `Guest.download`. The bytes are counted here, because the size that the guest reports is not trusted."""
        quoted = shlex.quote(path if path.startswith("/") else f"./{path}")
        script = (
            f"[ -f {quoted} ] && [ ! -L {quoted} ] || {{ echo 'not a regular file' >&2; exit 1; }}; "
            f"exec dd if={quoted} iflag=nofollow,fullblock bs=64k count={max_bytes // 65536 + 2} status=none"
        )
        return self.stream(script, sink, max_bytes=max_bytes, become=become, timeout=timeout)

    def stream(
        self,
        command: Sequence[str] | str,
        sink: BinaryIO,
        *,
        max_bytes: int,
        become: bool = False,
        timeout: float = 600,
    ) -> int:
        """Stream the output of a command to `sink`; GuestError if it fails or exceeds `max_bytes`."""
        total = 0

        def write(data: bytes) -> None:
            nonlocal total
            total += len(data)
            if total > max_bytes:
                raise GuestRefusedError(
                    f"the guest sent more than the {max_bytes} bytes that are allowed",
                    where=self._instance_id,
                    hint="raise the limit or read less",
                )
            sink.write(data)

        done = self._execute(command, io.BytesIO(), write, timeout=timeout, become=become)
        if done.exit_code != 0:
            raise self._refused("reading from the guest failed", bytes(done.stderr))
        return total

    def _refused(self, what: str, stderr: bytes) -> GuestRefusedError:
        said = stderr[-500:].decode("utf-8", "replace").strip()
        return GuestRefusedError(
            f"{what}: {said!r}", where=self._instance_id, hint="check the path and its permissions in the guest"
        )

    def _lost(self, why: object) -> GuestError:
        return GuestError(
            f"the connection to the guest was lost: {why}",
            where=self._instance_id,
            hint="check console.log for a panic, a reboot or lack of memory",
        )

    def _late(self, what: str) -> GuestTimeout:
        return GuestTimeout(
            what, where=self._instance_id, hint="raise the time limit, or check why the command does not end"
        )

    def _execute(
        self,
        command: Sequence[str] | str,
        source: BinaryIO,
        on_stdout: Callable[[bytes], None],
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        chdir: str | None = None,
        become: bool = False,
        reading: Reading = Reading(),  # noqa: B008 - it cannot be changed
    ) -> RunningCommand:
        deadline = time.monotonic() + timeout
        elevate = become and self._user != "root"
        envelope = make_envelope(
            command, token=f"kvm-{uuid.uuid4().hex}", environment=environment, chdir=chdir, elevate=elevate
        )
        if not self._sessions.acquire(timeout=timeout):
            raise self._late(f"no SSH session became free within {timeout:g} s")
        running = RunningCommand(envelope.token, on_stdout, reading)
        try:
            channel = self._open_channel(timeout=max(deadline - time.monotonic(), 0.05))
            try:
                channel.settimeout(max(deadline - time.monotonic(), 0.05))
                channel.exec_command(envelope.remote)
                feeder = threading.Thread(target=feed, args=(channel, envelope.head, source), daemon=True)
                feeder.start()
                if running.pump(cast(Channel, channel), deadline):
                    if running.exit_code < 0:
                        self._explain_missing_exit_code()
                        running.exit_code = 128 + 9
                    return running
            except BaseException:
                self._kill(running.process, become=become)
                raise
            finally:
                channel.close()
        except (OSError, EOFError, paramiko.SSHException) as error:
            if time.monotonic() < deadline or not self._transport.is_active():
                raise self._lost(error or type(error).__name__) from None
        finally:
            self._sessions.release()
        if not self._kill(running.process, become=become):
            raise self._lost(f"a command exceeded its limit of {timeout:g} s, and the guest accepts no other")
        raise self._late(f"the command did not end within {timeout:g} s")

    def _explain_missing_exit_code(self) -> None:
        """A killed shell and a lost guest are distinguished by the transport, after a moment."""
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            if not self._transport.is_active():
                raise EOFError("the server closed the connection")
            time.sleep(0.02)

    def _kill(self, process: RemoteProcess | None, *, become: bool, limit: float = 10.0) -> bool:
        """Kill the command; False if the guest does not open a channel for it."""
        command = make_kill_command(process) if process else ["true"]
        elevate = become and self._user != "root"
        envelope = make_envelope(command, token="kill", environment=None, chdir=None, elevate=elevate)  # noqa: S106
        try:
            channel = self._open_channel(timeout=limit)
            try:
                channel.settimeout(limit)
                channel.exec_command(envelope.remote)
                channel.sendall(envelope.head)
                channel.status_event.wait(limit)
            finally:
                channel.close()
        except (OSError, EOFError, paramiko.SSHException):
            return False
        return True
