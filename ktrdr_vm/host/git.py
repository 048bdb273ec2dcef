"""Git on the host, as the repository's owner, with no hook, monitor, prompt or configuration of a person's."""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_vm.host import process

LIMIT = 600.0
_SAFE = (
    "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false",
    "-c", "protocol.ext.allow=never", "-c", "safe.bareRepository=explicit", "-c", "gc.auto=0", "-c", "maintenance.auto=false",
    # Large files are streamed and not compared, and few are compared at once: objects may be a guest's.
    "-c", "core.bigFileThreshold=64m", "-c", "pack.windowMemory=512m", "-c", "pack.threads=2",
)  # fmt: skip
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "HOME": "/nonexistent",
}


# For what reads objects that a guest made: a few hundred bytes of trees can name a million million files.
BOUNDS = ("prlimit", "--data=1073741824", "--cpu=120", "--fsize=67108864", "--")


def git(
    directory: Path, owner: tuple[int, int], *words: str, check: bool = True, stdout: int | None = None, bounds: tuple[str, ...] = ()
) -> process.Completed:
    """Run git in a folder as `owner` (uid, gid). Git refuses another user's repository, and root runs nothing of a user's.

    Without root there is no choice, and a repository of root's is root's. `bounds` is a program that limits what follows it.
    """
    user, group = owner if os.geteuid() == 0 and owner[0] != 0 else (None, None)
    return process.run(
        [*bounds, "git", *_SAFE, *words],
        cwd=directory,
        timeout=LIMIT,
        environment=_ENVIRONMENT,
        check=check,
        user=user,
        group=group,
        stdout=stdout,
    )
