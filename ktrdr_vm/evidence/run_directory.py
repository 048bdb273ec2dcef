"""The run directory: events as they happen, the ledger's rows, files that belong to the person who asked for the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ktrdr_vm.host.clock import now
from ktrdr_vm.host.runs import hand_over, require_own
from ktrdr_vm.report.mask import mask_values
from ktrdr_vm.report.model import Artifact

# A console that a guest floods is kept to its end.
MAX_CONSOLE = 8 * 1024 * 1024


def make_run_id() -> str:
    """Sortable by time, and never twice."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


class RunDirectory:
    """`runs/<instance_id>/<run_id>/`, open for writing while the run lasts."""

    def __init__(self, path: Path, instance_id: str, owner: tuple[int, int], mask: Callable[[str], str]) -> None:
        self.path = path
        self._instance_id = instance_id
        self._owner = owner
        self._mask = mask
        # Made by `create_run`, and this user's own until `close`: until then every path in it is what this program made.
        for folder in (path, path / "artifacts", path / "bundle"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_own(path)
        self._closed = False
        self._events = (path / "events.jsonl").open("a", encoding="utf-8", errors="backslashreplace")
        self._link_latest()

    def event(self, event: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        said = mask_values(json.loads(json.dumps(fields, default=str)), self._mask)
        line = json.dumps({"time": now(), "instance_id": self._instance_id, "run_id": self.path.name, "event": event, **said})
        # A full disk must not end what is going on: the report, written last, says that it was full.
        with contextlib.suppress(OSError, ValueError):
            self._events.write(line + "\n")
            self._events.flush()

    def relay(self, fields: Mapping[str, Any]) -> None:
        """A gate's event, which brings its own name."""
        rest = {key: value for key, value in fields.items() if key != "event"}
        self.event(str(fields.get("event", "gate")), **rest)

    def write(self, name: str, text: str) -> None:
        """`text` as it is: what may hold a secret is masked before it becomes a document."""
        if self._closed:  # the person's by now
            return
        (self.path / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def keep_ledger(self, rows: Iterable[dict[str, Any]], *, add: bool) -> None:
        """Write the ledger's lines of this run to egress.jsonl, or add them to it."""
        if self._closed:
            return
        with (self.path / "egress.jsonl").open("a" if add else "w", encoding="utf-8") as kept:
            for row in rows:
                kept.write(json.dumps(mask_values(row, self._mask)) + "\n")

    def keep_console(self, console: Path, name: str = "console.log") -> None:
        """The end of the console's log, with secrets masked."""
        if not console.exists():
            return
        with console.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_CONSOLE))
            self.write(name, self._mask(file.read().decode("utf-8", "replace")))

    def close(self) -> None:
        """Hand everything to the person. After that nothing of it is opened by its path again."""
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
    """What the tasks of a gate brought into its `folder` of the run's `directory`, with sizes and digests."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        source = str(path.relative_to(folder))
        found.append(Artifact(str(path.relative_to(directory)), source, path.stat().st_size, digest, gate=gate))
    return tuple(found)
