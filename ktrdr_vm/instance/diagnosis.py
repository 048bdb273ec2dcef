"""Why a guest no longer answers, as the host sees it: its VM has ended or is paused, or its kernel reported a fatal
error on the console."""

from __future__ import annotations

import os
import re

from ktrdr_vm.errors import KtrdrError, keep_beginning
from ktrdr_vm.instance.resources.base import Target

ENDED = "its VM has ended: QEMU has exited, or the guest powered off"

_TAIL = 64 * 1024
_FATAL_ERROR = re.compile(
    r"(Kernel panic - not syncing[^\n]*|Out of memory: Killed process[^\n]*|I/O error, dev vda[^\n]*)"
)


def explain_loss(target: Target) -> str:
    """One sentence; empty when the VM runs and its console shows no fatal error."""
    reported = read_fatal_error(target)
    try:
        facts = target.libvirt.find(target.identity.domain)
    except KtrdrError as error:
        return error.message
    if facts is None or not facts.state.is_alive:
        said = ENDED
    elif facts.state == "paused":
        said = "its VM is paused: the host has no space for its disk, or somebody paused it"
    else:
        said = ""
    return "; ".join(filter(None, (said, reported)))


def read_fatal_error(target: Target) -> str:
    """The last fatal error on the console. The guest writes the console, so it may be false."""
    try:
        with target.paths.console.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            found = _FATAL_ERROR.findall(file.read().decode("utf-8", "replace"))
    except OSError:
        return ""
    return f"its console says: {keep_beginning(found[-1].strip(), 200)}" if found else ""
