"""Removal of requests that ended long ago, with their attempts, and of what no request has any more."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.run_removal import KEPT_DAYS
from ktrdr_vm.host.tree_removal import remove_tree
from ktrdr_vm.places.filenames import BATCHES, INCOMING, REQUESTS
from ktrdr_vm.places.request import parse_request_id
from ktrdr_vm.places.request_state import find_silence
from ktrdr_vm.places.spool import Spool

# A request that has not ended may wait for a scheduler; one without a sign for this long waits for nothing.
SILENT_DAYS = 4 * KEPT_DAYS
_DAY = 86400
_DOOMED = ".gone-"


def collect_requests(spool: Spool, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove requests that ended KEPT_DAYS ago and those without a sign for SILENT_DAYS, what was received in part
    KEPT_DAYS ago, and the bundles and arrays that no request has any more. Rows are those of `gc`, with the id of the
    request as `instance_id`.

    The place does not know whether a request was fetched, and therefore removes none earlier.
    """
    rows = []
    for path, reason in [*_find_old(spool), *_find_parts(spool.root / INCOMING)]:
        action = "would remove" if dry_run else "removed"
        if not dry_run:
            try:
                _remove(path)
            except FileNotFoundError:
                continue  # another process removed it
            except OSError as error:
                action, reason = "failed", f"{path}: {error.strerror}; next: remove it by hand"
        rows.append({"action": action, "instance_id": path.name.removeprefix(_DOOMED), "reason": reason})
    if not dry_run:
        _remove_arrays(spool.root / BATCHES)
        spool.bundles.remove_unused()
    return rows


def _find_old(spool: Spool) -> Iterator[tuple[Path, str]]:
    for path in _list(spool.root / REQUESTS):
        if path.name.startswith(_DOOMED):
            yield path, "its removal was interrupted"
            continue
        # The start of a request, and its end without an attempt, are entries of its folder.
        age = _find_age(path)
        if age <= KEPT_DAYS * _DAY:
            continue
        try:
            has_ended, silence = _has_ended(spool, path.name), min(age, find_silence(path))
        except FileNotFoundError:
            continue  # another process removes it
        if has_ended and silence > KEPT_DAYS * _DAY:
            yield path, f"it ended more than {KEPT_DAYS} days ago"
        elif silence > SILENT_DAYS * _DAY:
            yield path, f"it gave no sign for more than {SILENT_DAYS} days"


def _has_ended(spool: Spool, name: str) -> bool:
    """True if the request has ended; False also for one of another version, which alone can tell."""
    try:
        return spool.state(parse_request_id(name)).has_ended
    except UsageError:
        return False


def _find_parts(incoming: Path) -> Iterator[tuple[Path, str]]:
    for path in _list(incoming):
        if path.name.startswith(_DOOMED):
            yield path, "its removal was interrupted"
        elif _find_age(path) > KEPT_DAYS * _DAY:
            yield path, f"it was received in part, more than {KEPT_DAYS} days ago"


def _remove_arrays(batches: Path) -> None:
    """Remove the links of arrays whose requests were all removed. A new one has no links at first."""
    for path in _list(batches):
        with contextlib.suppress(OSError):
            if _find_age(path) > KEPT_DAYS * _DAY and not any(link.exists() for link in path.iterdir()):
                shutil.rmtree(path)


def _remove(path: Path) -> None:
    """Remove a folder. Its id is free before, so that an interrupted removal leaves no part of a request."""
    if not path.name.startswith(_DOOMED):
        path = path.rename(path.with_name(f"{_DOOMED}{path.name}"))
    remove_tree(path)


def _list(folder: Path) -> list[Path]:
    """The folders in a folder; none if it does not exist."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _find_age(path: Path) -> float:
    """Seconds since an entry of the folder was written; 0 if another process removed it."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
