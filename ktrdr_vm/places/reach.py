"""Reaching an instance at its place: the same command is run there over OpenSSH, with the streams and the exit code of
the one here."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TextIO

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.places.connection import BATCH
from ktrdr_vm.places.model import Place
from ktrdr_vm.places.open import find_program, make_settings
from ktrdr_vm.report.escape import escape_text

_PIPES = process.Streams(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
_PIECE = 65536
_MOST_CONNECTIONS = 64
_LOG_IN = 60.0
# For a command that has closed its output to end.
_END = 60.0
# OpenSSH's own exit code when it could not connect, or lost the connection. No command of ours ends with it.
_NOT_CONNECTED = 255


@dataclass(frozen=True)
class Reach:
    """One instance at a place, or with an empty id the place itself."""

    place: Place
    instance_id: str

    def make_words(self, words: Sequence[str], *, tty: bool = False) -> list[str]:
        """The program and its arguments that run `ktrdr-vm` with these words where the instance is."""
        place, relayed = self.place, list(words)
        if self.instance_id:
            settings = json.dumps(make_settings(place))
            relayed = [
                "relay",
                "--release",
                version("ktrdr-vm"),
                "--settings",
                settings,
                self.instance_id,
                "--",
                *words,
            ]
        if not place.host:
            return [*find_program(), *relayed]
        configuration = ("-F", place.ssh_config) if place.ssh_config else ()
        options = ("-tt" if tty else "-T", *BATCH, "-oLogLevel=ERROR", *configuration)
        return [str(process.require_program("ssh")), *options, "--", place.host, shlex.join([place.program, *relayed])]

    def show(self, words: Sequence[str]) -> int:
        """Run the command there, and print what it prints with control characters escaped. Its exit code."""
        # Without standard input, which such a command does not read here either.
        child = process.start(self.make_words(words), environment=dict(os.environ), streams=_PIPES, new_session=False)
        assert child.stdout is not None and child.stderr is not None
        pairs = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        gone = threading.Event()
        threads = [threading.Thread(target=_copy_escaped, args=(*pair, gone, child), daemon=True) for pair in pairs]
        for thread in threads:
            thread.start()
        try:
            code = child.wait()
            for thread in threads:
                thread.join(10)
        except BaseException:
            child.terminate()
            raise
        if gone.is_set():
            # The reader of our output is gone, such as `head`; main ends as it does for every command.
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return self._check(code)

    def receive(self, words: Sequence[str], *, most: int, into: IO[bytes]) -> bytes:
        """Run the command there. Its first line is returned, and the rest of its output, at most `most` bytes, written
        to a file."""
        child = process.start(self.make_words(words), environment=dict(os.environ), streams=_PIPES, new_session=False)
        assert child.stdout is not None
        said = _escape_stderr(child)
        try:
            first, total = child.stdout.readline(_PIECE), 0
            while piece := child.stdout.read(_PIECE):
                total += len(piece)
                if total > most:
                    raise ProvisionError(
                        f"the place sent more than {most} bytes",
                        where=self.place.name,
                        hint="nothing was stored; check that host",
                    )
                into.write(piece)
            into.flush()
            code = self._check(child.wait(_END))
            said.join(_END)
        except subprocess.TimeoutExpired:
            child.kill()
            raise ProvisionError(
                f"the command there closed its output, and has not ended within {_END:g} s",
                where=self.place.name,
                hint="nothing was stored; check that host",
            ) from None
        except BaseException:
            child.kill()
            raise
        finally:
            child.stdout.close()
        if code:
            raise ProvisionError(
                f"the command failed there with exit code {code}",
                where=self.place.name,
                hint="the message above is from that host",
            )
        return first

    def copy(self, source: str, destination: str) -> int:
        """Copy files with scp, whose connection is a stream to the SFTP server of the instance. The exit code of
        scp."""
        with tempfile.TemporaryDirectory(prefix="ktrdr-copy-") as name:
            script = Path(name) / "connect"
            line = shlex.join(self.make_words(["stream", self.instance_id, "sftp"]))
            # The options of scp are for a host that is connected to already.
            script.write_text(f"#!/bin/sh\nexec {line}\n", encoding="utf-8")
            script.chmod(0o700)
            words = ["scp", "-S", str(script), "-r", "-p", "--", source, destination]
            child = process.start(
                words, environment=dict(os.environ), streams=process.Streams(0, 1, subprocess.PIPE), new_session=False
            )
            said = _escape_stderr(child)
            try:
                code = child.wait()
                said.join(_END)
                return self._check(code)
            except BaseException:
                child.terminate()
                raise

    def forward(self, forwards: Sequence[tuple[int, str, int]], announce: Callable[[str], None]) -> None:
        """Accept connections on loopback ports, each (port here, host and port of the guest), and connect each of them
        there.

        Runs until it is interrupted, which ends the connections.
        """
        children: list[subprocess.Popen[bytes]] = []
        with contextlib.ExitStack() as stack:
            poll, targets = select.poll(), {}
            for local, host, port in forwards:
                listener = stack.enter_context(_listen(local))
                targets[listener.fileno()] = (listener, f"{host}:{port}")
                poll.register(listener, select.POLLIN)
            for local, _, _ in forwards:
                announce(f"http://127.0.0.1:{local}/")
            try:
                while True:
                    for descriptor, _ in poll.poll():
                        listener, target = targets[descriptor]
                        children = [child for child in children if child.poll() is None]
                        connection, _ = listener.accept()
                        with connection:
                            if len(children) < _MOST_CONNECTIONS:
                                children.append(self._connect(connection, target))
            finally:
                for child in children:
                    child.terminate()

    def _connect(self, connection: socket.socket, target: str) -> subprocess.Popen[bytes]:
        # The socket itself is its standard input and output: no byte passes through this process.
        both = connection.fileno()
        words = self.make_words(["stream", self.instance_id, target])
        child = process.start(words, environment=dict(os.environ), streams=process.Streams(both, both, subprocess.PIPE))
        _escape_stderr(child)
        return child

    def _check(self, code: int) -> int:
        if code == _NOT_CONNECTED and self.place.host:
            raise HostError(
                "the place could not be reached, or the connection was lost",
                where=self.place.name,
                hint=f"the instance goes on; `ktrdr-vm places check {self.place.name}` connects to it",
            )
        return code if code >= 0 else 128 - code


def can_log_in(place: Place) -> tuple[bool, str]:
    """True if OpenSSH can run a program there without asking; what it said."""
    configuration = ("-F", place.ssh_config) if place.ssh_config else ()
    words = ["ssh", "-T", *BATCH, "-oLogLevel=ERROR", *configuration, "--", place.host, "true"]
    done = process.run(words, timeout=_LOG_IN, environment=dict(os.environ), check=False)
    return done.exit_code == 0 and not done.stdout, (done.error_text or done.text.strip())[-500:]


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_MOST_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise HostError(
            f"port {port} of this host cannot be used: {error.strerror}",
            where=f"127.0.0.1:{port}",
            hint="choose another one: LOCAL:PORT",
        ) from None
    return listener


def _escape_stderr(child: subprocess.Popen[bytes]) -> threading.Thread:
    """Copy what a child says to standard error, escaped: it comes from a place, or from its guest."""
    assert child.stderr is not None
    thread = threading.Thread(target=_copy_escaped, args=(child.stderr, sys.stderr), daemon=True)
    thread.start()
    return thread


def _copy_escaped(
    source: IO[bytes],
    target: TextIO,
    gone: threading.Event | None = None,
    child: subprocess.Popen[bytes] | None = None,
) -> None:
    """Copy text as it comes; a character that is cut into two pieces is one. With `gone`, a reader that has gone ends
    the child."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with source:
        while True:
            piece = os.read(source.fileno(), _PIECE)
            try:
                target.write(escape_text(decoder.decode(piece, final=not piece)))
                target.flush()
            except (OSError, ValueError):
                if gone is not None and child is not None:
                    gone.set()
                    child.terminate()
                    return
            if not piece:
                return
