"""The near end: one OpenSSH connection to `serve --stdio`, made again when it is lost. Every operation may be
repeated."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any, Protocol

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host import process
from ktrdr_vm.places.model import Place
from ktrdr_vm.places.wire import Lines, LostConnection, check_greeting, parse_error

# What OpenSSH needs of a person's environment: the agent, and the names of the configuration.
_VARIABLES = ("HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "KRB5CCNAME")
BATCH = (
    "-oBatchMode=yes",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=3",
    "-oClearAllForwardings=yes",
    "-oForwardAgent=no",
    "-oForwardX11=no",
)
"""OpenSSH asks nothing, notices a connection that is gone, and forwards nothing: whoever is root at the place could use
a forwarded agent."""
_WAITS = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
# Before the first answer, a wrong name or key is likelier than a bad line.
_FIRST_TRIES = 4


class Channel(Protocol):
    """Lines to a far end, and how to end it."""

    lines: Lines

    def close(self) -> str:
        """End it. What its program said on standard error, bounded."""


class SshChannel:
    """`ssh HOST ktrdr-vm serve --stdio`."""

    def __init__(self, place: Place) -> None:
        configuration = ("-F", place.ssh_config) if place.ssh_config else ()
        words = ["ssh", "-T", *BATCH, *configuration, "--", place.host, place.program, "serve", "--stdio"]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the channel
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        self._process = process.start(
            words,
            environment=environment,
            streams=process.Streams(subprocess.PIPE, subprocess.PIPE, self._errors),
            new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.lines = Lines(self._process.stdout.fileno(), self._process.stdin.fileno(), place.host)

    def close(self) -> str:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait(10)
        self._errors.seek(0)
        said = self._errors.read(4000).decode("utf-8", "replace").strip()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                file.close()  # type: ignore[union-attr]
        return said


class Connection:
    """Calls operations of a far end. A lost connection is made again until `patience` seconds have passed without an
    answer."""

    def __init__(
        self,
        open_channel: Callable[[], Channel],
        greeting: dict[str, Any],
        name: str,
        *,
        patience: float = 600.0,
        answer_limit: float = 90.0,
        on_lost: Callable[[str], object] = str,
    ) -> None:
        self._open_channel = open_channel
        self._greeting = greeting
        self._name = name
        self._patience = patience
        self._answer_limit = answer_limit
        self._on_lost = on_lost
        self._channel: Channel | None = None
        self._number = 0
        self.facts: dict[str, Any] = {}

    def call(self, operation: str, **words: Any) -> dict[str, Any]:
        """The result of an operation. The errors of the far end, and LostConnection after `patience`."""
        answered, tries = time.monotonic(), 0
        while True:
            try:
                if self._channel is None:
                    self._greet()
                return self._ask(operation, words)
            except LostConnection as error:
                said = self.close()
                if time.monotonic() - answered > self._patience or (not self.facts and tries >= _FIRST_TRIES):
                    raise LostConnection(
                        error.message + (f" ({said[-500:]})" if said else ""), where=error.where, hint=error.hint
                    ) from None
                self._on_lost(f"{error.message}; connecting again")
                time.sleep(_WAITS[min(tries, len(_WAITS) - 1)])
                tries += 1
            except KtrdrError:
                raise
            except BaseException:
                # Half a message may have been read.
                self.close()
                raise

    def close(self) -> str:
        """End the connection; the next call makes a new one. What the program said on standard error."""
        channel, self._channel = self._channel, None
        return channel.close() if channel is not None else ""

    def _greet(self) -> None:
        self._channel = self._open_channel()
        lines = self._channel.lines
        try:
            lines.send(self._greeting)
            theirs = lines.receive(timeout=self._answer_limit)
            check_greeting(theirs, (self._greeting["ktrdr-vm"], self._greeting["schema"]), self._name)
            facts = lines.receive(timeout=self._answer_limit)
        except UsageError as error:
            said = self.close()
            raise UsageError(
                error.message + (f" ({said[-300:]})" if said else ""), where=self._name, hint=error.hint
            ) from None
        if facts is None:
            raise LostConnection("the connection was lost after the greeting", where=self._name, hint="try again")
        if "error" in facts:
            self.close()
            raise parse_error(facts["error"], self._name)
        found = facts.get("facts")
        self.facts = found if isinstance(found, dict) else {}

    def _ask(self, operation: str, words: dict[str, Any]) -> dict[str, Any]:
        assert self._channel is not None
        self._number += 1
        self._channel.lines.send({"id": self._number, "do": operation, "with": words})
        try:
            answer = self._channel.lines.receive(timeout=self._answer_limit)
        except UsageError:
            # What follows would be read as the answer to the next question.
            self.close()
            raise
        if answer is None:
            raise LostConnection("the connection was lost: the other end closed it", where=self._name, hint="try again")
        if answer.get("id") != self._number:
            self.close()
            raise UsageError(
                "the answer is for another question",
                where=self._name,
                hint="use the same version of ktrdr-vm at both ends",
            )
        if "error" in answer:
            raise parse_error(answer["error"], self._name)
        result = answer.get("result")
        if not isinstance(result, dict):
            raise UsageError(
                "the answer has no result", where=self._name, hint="use the same version of ktrdr-vm at both ends"
            )
        return result
