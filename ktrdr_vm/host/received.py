"""Run directories that come from another host: written to a temporary folder, then renamed to their place beneath
`runs/`.

The bytes are those of the other host. Names are checked by the caller and written without following links; an existing
run is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.run_removal import remove_run
from ktrdr_vm.host.runs import FinishedRun, hand_over

ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """Where a run happened, and the repository of this host that it started from (empty without one)."""

    place: str
    node: str
    request_id: str
    attempt: int
    workspace: str


@contextlib.contextmanager
def receive_run(
    home: Home, instance_id: str, run_id: str, origin: Origin, owner: tuple[int, int], *, here: bool = False
) -> Iterator[Path]:
    """A folder to write a run into. At the end of the block it becomes the run; an exception removes it.

    `here` says that the run happened in this state directory: its own directory is replaced.
    """
    home.create()
    path = home.run(instance_id, run_id)
    path.parent.mkdir(mode=0o711, exist_ok=True)
    if os.path.lexists(path) and not here and read_origin(path) != origin:
        raise UsageError(
            "there is another run of this name", where=str(path), hint="rename or remove it, then fetch again"
        )
    made = path.with_name(f".{run_id}.received")
    remove_run(made)
    made.mkdir(mode=0o700)
    try:
        yield made
        (made / ORIGIN).write_text(json.dumps(origin.__dict__) + "\n", encoding="utf-8")
        remove_run(path)
        made.rename(path)
    except BaseException:
        remove_run(made)
        raise
    hand_over(path, owner)
    link = path.parent / ".latest.new"
    link.unlink(missing_ok=True)
    link.symlink_to(run_id)
    link.rename(path.parent / "latest")


def read_origin(path: Path) -> Origin | None:
    """Where a run happened; None for a run of this host, and for a file that is not valid."""
    try:
        return Origin(**FinishedRun(path).document(ORIGIN))
    except (OSError, KtrdrError, TypeError):
        return None
