"""Who is behind this process: what is written for them is theirs."""

from __future__ import annotations

import os


def find_owner() -> tuple[int, int]:
    """The invoking person: who is behind sudo, else who runs this."""
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit() and os.environ.get("SUDO_GID", "").isdigit():
        return int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    return os.getuid(), os.getgid()
