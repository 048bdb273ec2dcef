"""Every error a user can meet. Each says what happened, where, and what to do next.

    KtrdrError                    exit
    ├── UsageError                   2   the command line is wrong
    ├── DocumentError                2   a profile, playbook, recipe or policy is invalid (all problems at once)
    ├── HostError                    3   the host lacks something; `ktrdr-vm doctor` says what
    ├── ProvisionError               4   the VM could not be created or reached
    │   ├── GuestError               4   the guest did not answer, or its answer was invalid
    │   └── ForeignError             4   an object of that name exists and does not belong to ktrdr-vm
    ├── ResidueError                 5   resources are left; the error names them
    ├── EscalationStop               6   the run stopped at an escalation; the instance is suspended and kept
    └── BusyError                    7   another run holds the instance

A failed gate or workload is a result, not an error: `run` turns it into exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class KtrdrError(Exception):
    """What happened (`message`), where (`where`: a file:line, an instance, a host object) and what to do (`hint`)."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(KtrdrError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Problem:
    """One error in a document. `line` and `column` count from 1; 0 means the document as a whole."""

    source: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


_MOST_MESSAGES, _MOST_PLACES = 40, 5


class DocumentError(KtrdrError):
    """A document is invalid. `problems` holds every error in it, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem], *, hint: str) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(summarize(self.problems)), hint=hint)


def summarize(problems: Sequence[Problem]) -> list[str]:
    """A line for each problem, within bounds: the first places of each message, then how many more places it has, then
    how many more messages there are."""
    places: dict[str, list[Problem]] = {}
    for problem in problems:
        places.setdefault(problem.message, []).append(problem)
    lines = []
    for message, found in list(places.items())[:_MOST_MESSAGES]:
        lines += [str(problem) for problem in found[:_MOST_PLACES]]
        if len(found) > _MOST_PLACES:
            lines.append(f"… and {len(found) - _MOST_PLACES} more places: {message}")
    rest = [problem for found in list(places.values())[_MOST_MESSAGES:] for problem in found]
    return [*lines, f"… and {len(rest)} more problems"] if rest else lines


class HostError(KtrdrError):
    """The host lacks a program, a permission, a service, disk space or memory."""

    exit_code = 3


class ProvisionError(KtrdrError):
    """The VM could not be created, reached or inspected."""

    exit_code = 4


class GuestError(ProvisionError):
    """The guest did not answer in time, or its answer exceeded a limit or was invalid."""


class VmEndedError(GuestError):
    """The VM ended while the guest had to do something: QEMU exited, or the guest powered off."""


class ForeignError(ProvisionError):
    """An object on the host has the name of a resource and does not belong to ktrdr-vm. It is never changed and is no
    residue."""


class ResidueError(KtrdrError):
    """Resources of an instance still exist. `left` names each, with the command that removes it."""

    exit_code = 5

    def __init__(self, message: str, *, hint: str, left: Sequence[str], where: str = "") -> None:
        super().__init__(message, hint=hint, where=where)
        self.left = tuple(left)


class EscalationStop(KtrdrError):
    """The run stopped because the workload requested more than the profile allows."""

    exit_code = 6


class BusyError(KtrdrError):
    """Another process holds the instance's lock."""

    exit_code = 7


class LimitReached(KeyboardInterrupt):
    """SIGUSR1 of a scheduler: the time of this process is nearly over. An interruption, after which results are still
    fetched."""


# -- excerpts of what a program or a guest says, for messages ----------------------------------------------------------

CUT = "…"
"""Marks where a text was cut. Messages are masked after that, and there a mask searches for half a secret too."""


def keep_beginning(text: str, limit: int) -> str:
    """The first `limit` characters, and a mark if there were more."""
    return text if len(text) <= limit else f"{text[:limit]}{CUT}"


def keep_end(text: str, limit: int) -> str:
    """The last `limit` characters, after a mark if there were more: most programs say last what is wrong."""
    return text if len(text) <= limit else f"{CUT}{text[-limit:]}"
