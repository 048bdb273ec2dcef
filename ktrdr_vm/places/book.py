"""The requests that were submitted from this state directory, each with its place, its workspace and what was fetched
of it.

submitted/<request_id>.json
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.places.request import Request, parse_request_id


@dataclass(frozen=True)
class Entry:
    """One request. `workspace` is the top of its repository here, empty without one; `accepted` is the attempt that was
    fetched, or 0."""

    request_id: str
    place: str
    instance_id: str
    workspace: str
    commit: str
    created_at: str
    accepted: int = 0
    run_id: str = ""


class Book:
    """The folder of entries."""

    def __init__(self, home: Home) -> None:
        self._folder = home.submitted

    def write(self, entry: Entry) -> None:
        """Add or replace an entry."""
        self._folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        make_private(self._folder)
        write_durably(self._path(entry.request_id), (json.dumps(asdict(entry)) + "\n").encode())

    def add(self, request: Request, workspace: Path | None) -> None:
        """Record a request before it is sent, so that it can be followed whatever happens to this process."""
        where = str(workspace) if workspace is not None else ""
        self.write(
            Entry(request.request_id, request.place, request.instance_id, where, request.commit, request.created_at)
        )

    def accept(self, entry: Entry, attempt: int, run_id: str) -> None:
        """Record the attempt from which results were taken."""
        self.write(replace(entry, accepted=attempt, run_id=run_id))

    def remove(self, request_id: str) -> None:
        """Remove the entry of a request that was not sent; idempotent."""
        self._path(request_id).unlink(missing_ok=True)

    def read(self, request_id: str) -> Entry:
        """The entry of a request. UsageError if it was not submitted from here."""
        try:
            return Entry(**json.loads(self._path(request_id).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            raise UsageError(
                "this request was not submitted from this state directory",
                where=request_id,
                hint="`ktrdr-vm queue` lists those that were",
            ) from None

    def list(self) -> list[Entry]:
        """All entries, the oldest first."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(UsageError):
                found.append(self.read(path.stem))
        return found

    def _path(self, request_id: str) -> Path:
        return self._folder / f"{parse_request_id(request_id)}.json"
