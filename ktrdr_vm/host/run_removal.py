"""Evidence goes: what is too old, what is too much, and the digests with it. Nothing of it is opened."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from ktrdr_vm.host.journal import is_locked, list_directories
from ktrdr_vm.host.paths import Home

# Evidence that is older is collected.
KEPT_DAYS = 90
_OLD = f"the run ended more than {KEPT_DAYS} days ago"


def find_sums(path: Path) -> Path:
    """Where the digests of a run are: beside `runs/`, where only root comes."""
    return path.parent.parent.parent / "digests" / path.parent.name / f"{path.name}.json"


def collect_runs(home: Home, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove the evidence of runs that ended KEPT_DAYS ago; of an instance that is there the newest stays. Rows as `gc` shows them."""
    living = {path.name for path in list_directories(home)}
    rows = []
    for folder in sorted(home.runs.iterdir()) if home.runs.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir() or is_locked(home.lock(folder.name)):
            continue
        found = sorted(
            (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()), key=lambda path: path.lstat().st_mtime
        )
        old = [path for path in found if time.time() - path.lstat().st_mtime > KEPT_DAYS * 86400]
        if folder.name in living:
            old = [path for path in old if path != found[-1]]
        for path in old:
            rows.append({"action": "would remove" if dry_run else "removed", "instance_id": f"{folder.name}/{path.name}", "reason": _OLD})
            if not dry_run:
                remove_run(path)
        if not dry_run and len(old) == len(found):
            (folder / "latest").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not ours, then, what else is in it
                folder.rmdir()
    return rows


def remove_old_runs(runs: Path, keep: int) -> list[Path]:
    """Keep the newest `keep` runs of an instance_id, and as many of what `gate` fetched; returns what was removed."""
    if not runs.is_dir():
        return []
    found = sorted((path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()), reverse=True)
    gates = [path for path in found if path.name.startswith("gates-")]
    old = [path for path in found if path not in gates][keep:] + gates[keep:]
    for path in old:
        remove_run(path)
    return old


def remove_run(path: Path) -> None:
    """A run's directory and its digests. What a link in it leads to stays."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    if not path.name.startswith("."):
        find_sums(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            find_sums(path).parent.rmdir()
