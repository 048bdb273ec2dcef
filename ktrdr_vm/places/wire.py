"""JSON lines between a client and `serve --stdio`, on two descriptors. Every line is bounded, and every wait has a
limit.

The first line each way is the greeting: `{"ktrdr-vm": version, "schema": number, …}`. Then the client sends `{"id",
"do", "with"}`, one at a time, and the server answers `{"id", "result"}` or `{"id", "error": {kind, message, where,
hint}}`.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

from ktrdr_vm import errors
from ktrdr_vm.errors import HostError, KtrdrError, UsageError

MAX_LINE = 1024 * 1024
_CHUNK = 65536
_KINDS = {one.__name__: one for one in (errors.UsageError, errors.HostError, errors.ProvisionError, errors.BusyError)}


class LostConnection(HostError):
    """The other end closed the connection, or did not answer in time."""


class Lines:
    """One connection. `receive` and `send` raise LostConnection, and UsageError for what is not the protocol."""

    def __init__(self, reads: int, writes: int, name: str) -> None:
        self._reads, self._writes, self._name = reads, writes, name
        self._buffer = bytearray()
        os.set_blocking(writes, False)

    def send(self, content: dict[str, Any], *, timeout: float = 60.0) -> None:
        """Write one line."""
        data = memoryview(json.dumps(content, separators=(",", ":")).encode() + b"\n")
        if len(data) > MAX_LINE:
            raise UsageError(
                f"a message of {len(data)} bytes is too long",
                where=self._name,
                hint="this is a bug in ktrdr-vm: report it",
            )
        deadline = time.monotonic() + timeout
        while data:
            if not _wait(self._writes, select.POLLOUT, deadline):
                raise self._lost(f"it accepted nothing for {timeout:g} s")
            try:
                data = data[os.write(self._writes, data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost(error.strerror or str(error)) from None

    def receive(self, *, timeout: float | None) -> dict[str, Any] | None:
        """The next line; None at the end of the stream. Without `timeout` it waits for as long as the other end
        exists."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise self._refuse(f"a line is longer than {MAX_LINE} bytes")
            if not _wait(self._reads, select.POLLIN, deadline):
                raise self._lost(f"no answer for {timeout:g} s")
            piece = os.read(self._reads, _CHUNK)
            if not piece:
                return None
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if len(line) > MAX_LINE:
            raise self._refuse(f"a line is longer than {MAX_LINE} bytes")
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise self._refuse(f"this is not a message: {line[:200]!a}")
        return content

    def _lost(self, reason: str) -> LostConnection:
        return LostConnection(
            f"the connection was lost: {reason}",
            where=self._name,
            hint="the run goes on; `ktrdr-vm watch` follows it again",
        )

    def _refuse(self, reason: str) -> UsageError:
        return UsageError(
            f"the other end does not speak the protocol of ktrdr-vm: {reason}",
            where=self._name,
            hint="a login shell there must print nothing; `program` in places.yaml names ktrdr-vm",
        )


def _wait(descriptor: int, event: int, deadline: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return bool(poll.poll(left))


def render_error(error: KtrdrError) -> dict[str, Any]:
    """An error as data."""
    kind = next(
        (name for name, one in _KINDS.items() if isinstance(error, one)),
        "UsageError" if error.exit_code == 2 else "ProvisionError",
    )
    return {
        "kind": kind,
        "message": str(error) if error.where == "" else error.message,
        "where": error.where,
        "hint": error.hint,
    }


def parse_error(content: object, name: str) -> KtrdrError:
    """The error that the other end sent, bounded, with its name."""
    said = content if isinstance(content, dict) else {}
    kind = _KINDS.get(str(said.get("kind")), errors.ProvisionError)
    message, where, hint = (
        str(said.get(key, ""))[:limit] for key, limit in (("message", 4000), ("where", 400), ("hint", 1000))
    )
    return kind(
        message or "it refused without a reason",
        where=f"{name}: {where}" if where else name,
        hint=hint or "see `ktrdr-vm places check`",
    )


def check_greeting(theirs: dict[str, Any] | None, ours: tuple[str, int], name: str) -> None:
    """UsageError unless both ends have the same schema and the same release; LostConnection if there is no greeting."""
    if theirs is None:
        raise LostConnection(
            "it ended before its first line",
            where=name,
            hint="call `ssh` with that host by hand; `ktrdr-vm` must be installed there",
        )
    version, schema = str(theirs.get("ktrdr-vm", ""))[:60], theirs.get("schema")
    if "ktrdr-vm" not in theirs:
        raise UsageError(
            "the other end is not ktrdr-vm", where=name, hint="`program` in places.yaml names ktrdr-vm at that host"
        )
    if schema != ours[1]:
        raise _unfit(f"{ours[0]} (schema {ours[1]})", f"{version} (schema {schema!a:.20})", name)
    require_release(version, ours[0], name)


def require_release(theirs: str, ours: str, name: str) -> None:
    """UsageError unless both ends have the same release."""
    if _release(theirs) != _release(ours):
        raise _unfit(ours, theirs, name)


def _unfit(ours: str, theirs: str, name: str) -> UsageError:
    return UsageError(
        f"the versions do not fit: {ours} here, {theirs[:90]!a} there",
        where=name,
        hint="install the same release of ktrdr-vm at both ends",
    )


def _release(version: str) -> tuple[str, ...]:
    """Major and minor number, within which the shipped documents may differ and the protocol may not."""
    return tuple(version.split(".")[:2])
