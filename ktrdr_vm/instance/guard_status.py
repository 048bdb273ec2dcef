"""Whether the guard of an instance serves. Lists of instances ask it, so it imports no resource."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import KtrdrError, ProvisionError
from ktrdr_vm.host.journal import is_locked

# Seconds to import Python and dnspython on a slow disk of a busy host; usually a few tenths of a second. A guard that
# ends is noticed at once.
START_LIMIT = 120.0
# Seconds for a part that ended to serve again.
REPAIR_LIMIT = 3.0
# Seconds for a guard that runs to answer.
BUSY_LIMIT = 15.0
_POLL = 0.01


def check_guard(directory: Path) -> list[str]:
    """The parts of the guard of this folder that do not serve now, each with the reason, in complete sentences. Does
    not wait."""
    try:
        return find_faults(_ask_status(directory))
    except KtrdrError as error:
        return [error.message]


def find_faults(status: Mapping[str, Any]) -> list[str]:
    """The parts that do not serve, each with its last message. `status` is the guard's answer; one of an earlier
    version has no parts."""
    parts: dict[str, Any] = status.get("parts", {})
    return [
        f"{name} does not serve: {part['said'] or 'it has not started yet'}"
        for name, part in parts.items()
        if not part["serves"]
    ]


def _ask_status(directory: Path) -> dict[str, Any]:
    if not is_locked(directory / "guard.lock"):
        raise ProvisionError(
            "the guard does not run; nothing leaves the instance", where=str(directory), hint="`ktrdr-vm apply` again"
        )
    return GuardClient(directory).status()


def wait_serving(directory: Path) -> dict[str, Any]:
    """The guard's status, once all parts serve, or when one that has ended does not serve again in time."""
    began = time.monotonic()
    while True:
        try:
            status = _ask_status(directory)
        except KtrdrError:
            # It runs and is busy, on a slow host with the start of its parts.
            if time.monotonic() - began > BUSY_LIMIT or not is_locked(directory / "guard.lock"):
                raise
            time.sleep(_POLL)
            continue
        waiting = [part for part in status.get("parts", {}).values() if not part["serves"]]
        limit = REPAIR_LIMIT if any(part["ends"] for part in waiting) else START_LIMIT
        if not waiting or time.monotonic() - began > limit:
            return status
        time.sleep(_POLL)
