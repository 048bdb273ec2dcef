"""What a person does from `top`: the commands of this program, run as that person would run them."""

from __future__ import annotations

import os
import signal
import sys

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import process
from ktrdr_vm.monitoring.top.streams import Stream
from ktrdr_vm.report.escape import escape_text

PROGRAM = (sys.executable, "-P", "-m", "ktrdr_vm")
# A suspended VM writes its memory to the disk.
LIMIT = 900.0
_KEPT = 2000


def answer(stream: Stream, escalation_id: str, verb: str, reason: str) -> list[str]:
    """The command that approves or denies an escalation."""
    return ["escalations", verb, stream.instance_id, escalation_id, "--reason", reason]


def toggle_suspend(stream: Stream) -> list[str]:
    """The command that suspends an instance, or resumes one that is suspended."""
    return ["resume" if stream.state == "suspended" else "suspend", stream.instance_id]


def destroy(stream: Stream) -> list[str]:
    """The command that ends it: a run in good order, a request at a place by a cancellation."""
    return ["cancel", stream.request_id] if stream.request_id else ["destroy", "--yes", "--force", stream.instance_id]


def enter(stream: Stream) -> list[str]:
    """The command that opens a shell in it, wherever it is."""
    return ["ssh", *(["--on", stream.place] if stream.place else []), stream.instance_id]


def follow(stream: Stream) -> list[str]:
    """The command that prints what it does: the events of its run, or those of a request elsewhere."""
    return ["watch", stream.request_id] if stream.request_id else ["logs", "--follow", stream.instance_id]


def run(words: list[str]) -> tuple[int, str]:
    """Run a command without a terminal: its exit code, and the end of what it said."""
    try:
        ended = process.run([*PROGRAM, *words], timeout=LIMIT, environment=os.environ, check=False)
    except KtrdrError as error:
        return error.exit_code, error.message
    said = (ended.stderr or ended.stdout).decode("utf-8", "replace").strip()
    return ended.exit_code, escape_text(said[-_KEPT:])


def run_here(words: list[str]) -> int:
    """Run a command that has the terminal for itself, and with it Ctrl-C; its exit code."""
    numbers = (signal.SIGINT, signal.SIGQUIT)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        return process.start(
            [*PROGRAM, *words],
            environment=os.environ,
            streams=process.Streams(0, 1, 2),
            new_session=False,
            in_child=_restore_signals,
        ).wait()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _restore_signals() -> None:
    """An ignored signal would stay ignored in the program that is started."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
