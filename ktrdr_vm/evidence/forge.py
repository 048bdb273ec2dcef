"""The status of a commit for a forge: JSON on the standard input of commands of the owner, such as a script around
`gh`, `glab` or `tea`.

A command only receives. Its failure is reported to the user, and neither its exit code nor its output changes a
verdict.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ktrdr_vm.errors import KtrdrError, UsageError, keep_end
from ktrdr_vm.host import process
from ktrdr_vm.host.owner import find_login
from ktrdr_vm.host.repository import Repository

NOTIFY_LIMIT = 60.0
# What a command may need if it runs as the owner of the repository instead of the caller.
_KEPT = ("HOME", "USER", "LANG", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME")
_CONTEXT = "ktrdr-vm/verify"
_MAX_DESCRIPTION = 140


@dataclass(frozen=True)
class Status:
    """The state of one commit. `description` becomes one line of at most 140 characters, a limit of forges; `summary`
    is plain text of any length."""

    state: Literal["pending", "success", "failure"]
    sha: str
    description: str
    target: str = ""
    ref: str = ""
    summary: str = ""
    attestation: str = ""

    def to_json(self) -> dict[str, str]:
        return {
            **asdict(self),
            "description": " ".join(self.description.split())[:_MAX_DESCRIPTION],
            "context": _CONTEXT,
        }


def parse_command(text: str) -> tuple[str, ...]:
    """The words of `--notify`, quoted as in a shell, which does not run. UsageError for none."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(
            f"the command cannot be split into words: {error}", where="--notify", hint="close its quotes"
        ) from None
    if not words or "\0" in text:
        raise UsageError(
            "the command is empty", where="--notify", hint="name a program, for example --notify ./status.sh"
        )
    return words


def notify_forge(
    commands: Sequence[Sequence[str]], status: Status, repository: Repository, note: Callable[[str], None]
) -> None:
    """Run each command in the repository, as its owner if this is root. `note` is called for each that fails; nothing
    is raised."""
    change = os.geteuid() == 0 and repository.owner[0] != 0
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} if change else dict(os.environ)
    environment.pop("PATH", None)
    environment |= find_login(repository.owner[0])
    for command in commands:
        try:
            done = process.run(
                list(command),
                stdin=json.dumps(status.to_json()).encode(),
                cwd=repository.root,
                timeout=NOTIFY_LIMIT,
                environment=environment,
                check=False,
                owner=repository.owner,
            )
        except (KtrdrError, OSError, ValueError) as error:
            note(f"the forge was not told `{status.state}`: {error}")
            continue
        if done.exit_code != 0:
            said = keep_end(done.error_text, 300) or "no message"
            note(
                f"the forge was not told `{status.state}`: {command[0]} failed with exit code {done.exit_code}: {said}"
            )
