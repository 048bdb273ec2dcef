"""Removal of old and surplus evidence, with its digests. Its files are not opened."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from ktrdr_vm.host.journal import is_locked, list_directories
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.tree_removal import remove_tree

# Older evidence is removed.
KEPT_DAYS = 90
_OLD = f"the run ended more than {KEPT_DAYS} days ago"


def find_sums(path: Path) -> Path:
    """The path of the digests of a run, outside of `runs/`, for root only."""
    return path.parent.parent.parent / "digests" / path.parent.name / f"{path.name}.json"


def collect_runs(home: Home, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove the evidence of runs that ended KEPT_DAYS ago; the newest of an existing instance is kept. Rows are those
    of `gc`."""
    existing = {path.name for path in list_directories(home)}
    rows = []
    for folder in sorted(home.runs.iterdir()) if home.runs.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir() or is_locked(home.lock(folder.name)):
            continue
        found = sorted(
            (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()),
            key=lambda path: path.lstat().st_mtime,
        )
        old = [path for path in found if time.time() - path.lstat().st_mtime > KEPT_DAYS * 86400]
        if folder.name in existing:
            old = [path for path in old if path != found[-1]]
        removed = 0
        for path in old:
            action, reason = "would remove" if dry_run else "removed", _OLD
            if not dry_run:
                try:
                    remove_run(path)
                    removed += 1
                except OSError as error:
                    # Of one user: the evidence of the others is removed nevertheless.
                    action, reason = "failed", f"{path}: {error.strerror}; next: remove it by hand"
            rows.append({"action": action, "instance_id": f"{folder.name}/{path.name}", "reason": reason})
        if removed and removed == len(found):
            (folder / "latest").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder has other content
                folder.rmdir()
    return rows


def remove_old_runs(runs: Path, keep: int) -> list[Path]:
    """Keep the newest `keep` runs of an instance_id, and as many artifacts of `gate`; return what was removed.

    The run that `latest` names has just ended, whatever the clock said when it began, and stays.
    """
    if not runs.is_dir():
        return []
    latest = ""
    with contextlib.suppress(OSError):
        latest = (runs / "latest").readlink().name
    found = sorted((path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()), reverse=True)
    gates = [path for path in found if path.name.startswith("gates-")]
    old = [path for path in found if path not in gates][keep:] + gates[keep:]
    removed = []
    for path in (path for path in old if path.name != latest):
        # One that cannot be removed, because its owner changes it or mounts something in it, is left for `gc`.
        with contextlib.suppress(OSError):
            remove_run(path)
            removed.append(path)
    return removed


def remove_run(path: Path) -> None:
    """Remove the directory of a run and its digests. Links are not followed."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        remove_tree(path)
    if not path.name.startswith("."):
        find_sums(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            find_sums(path).parent.rmdir()
