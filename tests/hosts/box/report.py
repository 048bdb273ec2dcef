"""What was run on which host, how it ended and where the time went: for the last lines of a run, and for
docs/hosts.md."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ktrdr_vm.host.paths import PROJECT

from .release import Release


@dataclass(frozen=True)
class Row:
    """One test on one host. `denials` counts the lines of AppArmor."""

    release: str
    test: str
    passed: bool
    denials: int
    seconds: float
    steps: tuple[tuple[str, float], ...]
    note: str
    commit: str
    day: str


@dataclass
class Rows:
    """Those of a session. Each is written to `place` at once: a session takes hours, and may be ended."""

    place: Path | None = None
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        release: Release,
        test: str,
        steps: list[tuple[str, float]],
        denials: list[str],
        *,
        passed: bool,
        note: str = "",
        commit: str = "",
    ) -> None:
        seconds, day = round(sum(taken for _, taken in steps), 1), time.strftime("%Y-%m-%d", time.gmtime())
        self.rows.append(
            Row(release.version, test, passed, len(denials), seconds, tuple(steps), note, commit or read_commit(), day)
        )

        if self.place is not None:
            self._write(self.place)

    def _write(self, path: Path) -> None:
        """Beside what was written before: a row of the same test on the same release is replaced."""
        known = json.loads(path.read_text())["rows"] if path.exists() else []
        new = {(row.release, row.test): asdict(row) for row in self.rows}
        old = {(row["release"], row["test"]): row for row in known}
        path.write_text(json.dumps({"rows": list((old | new).values())}, indent=1, sort_keys=True) + "\n")


def read_commit() -> str:
    """Of this checkout; a `+` says that something in it is not committed."""
    git = ["git", "-C", str(PROJECT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=20, check=True
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=60, check=True
    )
    return f"{head}+" if changed.stdout.strip() else head
