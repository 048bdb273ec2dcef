"""Check whether connections that this host opens reach the internet. The guard connects directly, not through a
proxy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
ROUTES = Path("/proc/net/route")
SYSTEM = Path("/etc/environment")
ADVICE = "let this host connect directly, or allow mirrors of its own network (`egress.reserved` of the owner's policy)"


def find_obstacle(environment: Mapping[str, str] = os.environ, routes: Path = ROUTES, system: Path = SYSTEM) -> str:
    """The reason why direct connections may fail on this host; empty if none is known."""
    if not _has_default_route(routes):
        return "this host has no default route"
    names = [name for name in _VARIABLES if environment.get(name)] or _find_assigned(system)
    return f"{names[0]} is set on this host, and the guard does not use a proxy: it connects directly" if names else ""


def _has_default_route(routes: Path) -> bool:
    """True if IPv4 has one, or if the table cannot be read."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return True
    return any(len(words := line.split()) > 7 and words[1] == words[7] == "00000000" for line in lines)


def _find_assigned(system: Path) -> list[str]:
    """Variables of all logins, which sudo does not pass on."""
    try:
        text = system.read_text(errors="replace")
    except OSError:
        return []
    return [name for name in _VARIABLES if re.search(rf"^\s*(?:export\s+)?{name}=\S", text, re.MULTILINE)]
