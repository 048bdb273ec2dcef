"""Where the host's own package clients go, so that a company's mirror works and no registry's name is written down here."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from ktrdr_vm.errors import HostError, KtrdrError
from ktrdr_vm.host import process
from ktrdr_vm.host.paths import list_shipped

Destination = tuple[str, int]
"""A host name and a TCP port."""

Owner = tuple[int, int]
"""uid and gid of the person who runs the command."""


def find_sources(preset: str, owner: tuple[int, int]) -> tuple[Destination, ...]:
    """The destinations of one of `PRESETS`, sorted, as the clients of `owner` are set up. HostError when the client cannot be asked."""
    found = tuple(sorted(set(PRESETS[preset](owner))))
    if not found:
        raise HostError(
            f"the host's own client names no source for the preset {preset}",
            where="egress.allow",
            hint="configure it on the host, or name the hosts",
        )
    return found


def _ask_apt(owner: Owner) -> list[Destination]:
    # It names what it would fetch, and fetches nothing; unlike apt's index it knows also before the first update.
    listed = _ask(["apt-get", "--print-uris", "update"], owner)
    return _destinations([line.split("'")[1] for line in listed.splitlines() if line.startswith("'")])


def _ask_pip(owner: Owner) -> list[Destination]:
    # The interpreter of this program may lack pip; the host's is the one that people configure.
    script = (
        "from pip._internal.configuration import Configuration as C\n"
        "from pip._internal.models.index import PyPI\n"
        "c = C(isolated=False); c.load(); v = dict(c.items())\n"
        "flat = {k: x for d in v.values() for k, x in d.items()} if v and isinstance(next(iter(v.values())), dict) else v\n"
        "pick = lambda end: [w for k, x in flat.items() if k.split('.', 1)[-1] == end for w in str(x).split()]\n"
        "own = pick('index-url')\n"
        "print(*(own or [PyPI.simple_url, 'https://' + PyPI.file_storage_domain]), *pick('extra-index-url'))\n"
    )
    return _destinations(_ask(["python3", "-c", script], owner).split())


def _ask_npm(owner: Owner) -> list[Destination]:
    return _destinations(_ask(["npm", "config", "get", "registry"], owner).split())


PRESETS: dict[str, Callable[[Owner], list[Destination]]] = {"debian": _ask_apt, "python": _ask_pip, "node": _ask_npm}


def list_presets() -> list[str]:
    """Every name that may stand under `preset`, sorted: what a client is asked for, and the shipped lists."""
    return sorted({*PRESETS, *list_shipped("profiles/egress")})


def _ask(argv: list[str], owner: Owner) -> str:
    # As the person, whose configuration it is and whose PATH may name anything: root runs nothing of theirs.
    user, group = owner if os.geteuid() == 0 and owner[0] != 0 else (None, None)
    home = _find_home(owner[0])
    path = os.environ.get("PATH", process.SYSTEM_PATH)
    try:
        return process.run(argv, timeout=30, environment={"HOME": home, "PATH": path}, cwd=Path("/"), user=user, group=group).text
    except KtrdrError as error:
        raise HostError(
            f"{argv[0]} could not be asked for its sources: {error.message[:200]}", where=argv[0], hint="install it, or name the hosts"
        ) from None


def _find_home(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/nonexistent"


def _destinations(urls: list[str]) -> list[Destination]:
    found = []
    for url in urls:
        try:
            parts, port = urlsplit(url), urlsplit(url).port
        except ValueError:
            continue  # no URL, or a port that none can be
        if parts.scheme not in ("http", "https") or not parts.hostname:
            continue
        if re.fullmatch(r"[a-z0-9.-]+", parts.hostname):
            found.append((parts.hostname, port or (443 if parts.scheme == "https" else 80)))
    return found
