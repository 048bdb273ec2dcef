"""The run directory: events as they happen, rows of the ledger, files that are handed over to the user who started the
run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_vm.host.clock import now
from ktrdr_vm.host.runs import hand_over, require_own
from ktrdr_vm.report.mask import mask_values

if TYPE_CHECKING:
    from ktrdr_vm.report.model import Artifact

# The end of a longer console log is kept.
MAX_CONSOLE = 8 * 1024 * 1024


def make_run_id() -> str:
    """A unique id, sortable by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


class RunDirectory:
    """`runs/<instance_id>/<run_id>/`, open for writing during the run."""

    def __init__(self, path: Path, instance_id: str, owner: tuple[int, int], mask: Callable[[str], str]) -> None:
        self.path = path
        self._instance_id = instance_id
        self._owner = owner
        self.mask = mask
        # Created by `create_run`, and owned by this user until `close`: until then, only this program creates paths in
        # it.
        for folder in (path, path / "artifacts", path / "bundle"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_own(path)
        self._closed = False
        self._read_revision: Callable[[], str] = str
        self._revision = ""
        self._events = (path / "events.jsonl").open("a", encoding="utf-8", errors="backslashreplace")
        self._link_latest()

    def follow_revision(self, read: Callable[[], str]) -> None:
        """Events carry what `read` returns: the revision of the instance of the current VM. Empty stands for the last
        one."""
        self._read_revision = read

    def event(self, event: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        self._revision = self._read_revision() or self._revision
        said = mask_values(json.loads(json.dumps(fields, default=str)), self.mask)
        ours = {
            "time": now(),
            "instance_id": self._instance_id,
            "run_id": self.path.name,
            "revision": self._revision,
            "event": event,
        }
        line = json.dumps({**ours, **said, **ours})
        # A full disk must not end the current step: the report, written last, contains the error.
        with contextlib.suppress(OSError, ValueError):
            self._events.write(line + "\n")
            self._events.flush()

    def relay(self, fields: Mapping[str, Any]) -> None:
        """Write an event of a gate, which contains its name."""
        rest = {key: value for key, value in fields.items() if key != "event"}
        self.event(str(fields.get("event", "gate")), **rest)

    def write(self, name: str, text: str) -> None:
        """Write `text` unchanged: the caller masks secrets."""
        if self._closed:  # it belongs to the user by now
            return
        (self.path / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def keep_ledger(self, rows: Iterable[dict[str, Any]], *, add: bool) -> None:
        """Write the ledger's lines of this run to egress.jsonl, or add them to it."""
        if self._closed:
            return
        with (self.path / "egress.jsonl").open("a" if add else "w", encoding="utf-8") as kept:
            for row in rows:
                kept.write(json.dumps(mask_values(row, self.mask)) + "\n")

    def keep_console(self, console: Path, name: str = "console.log") -> None:
        """Store the end of the console log, with secrets masked."""
        if not console.exists():
            return
        with console.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_CONSOLE))
            text = self.mask(file.read().decode("utf-8", "replace"))
        # A byte that is no text becomes three.
        kept = text.encode("utf-8", "backslashreplace")[-MAX_CONSOLE:]
        self.write(name, kept.decode("utf-8", "ignore"))

    def close(self) -> None:
        """Give everything to the user. After that, nothing in it is opened by path."""
        with contextlib.suppress(OSError):
            self._events.close()
        if not self._closed:
            hand_over(self.path, self._owner)
        self._closed = True

    def _link_latest(self) -> None:
        link = self.path.parent / ".latest.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path.name)
        link.rename(self.path.parent / "latest")


def list_fetched(folder: Path, gate: str, directory: Path) -> tuple[Artifact, ...]:
    """The files that tasks of a gate fetched into its `folder` of the run `directory`, with sizes and digests."""
    from ktrdr_vm.report.model import Artifact

    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        source = str(path.relative_to(folder))
        found.append(Artifact(str(path.relative_to(directory)), source, path.stat().st_size, digest, gate=gate))
    return tuple(found)
