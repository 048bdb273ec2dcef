"""The Debian archives and proxies for which apt on this host is configured. Recipes name no mirror."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import process

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FIELDS = ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN")
_PROXY = re.compile(
    r'^(Acquire::(?:http|https)::Proxy(?:::[^ ]+)?|Acquire::https::(?:CAInfo|CAPath)(?:::[^ ]+)?) "(.+)";$'
)


@dataclass(frozen=True)
class AptSource:
    """One archive: its base URL as apt uses it (which may contain a password), and whether it is the security
    archive."""

    uri: str
    security: bool

    @property
    def public_uri(self) -> str:
        """The URL without user and password, for files in the guest."""
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@dataclass(frozen=True)
class AptHost:
    """The settings of the host for a build: archives, and proxy settings in the syntax of apt."""

    main: AptSource
    security: AptSource | None
    options: tuple[str, ...]
    keyring: Path = KEYRING


def read_apt_host() -> AptHost:
    """Read the configuration of apt. HostError without a Debian archive."""
    hint = "an image is built from the Debian archive in the configuration of apt: add one to /etc/apt/sources.list.d/"
    if process.find_program("apt-get") is None:
        raise HostError("this host has no apt", hint=hint)
    if not KEYRING.is_file():
        raise HostError(
            "the signing keys of the Debian archive are missing",
            where=str(KEYRING),
            hint="run `apt-get install debian-archive-keyring`",
        )
    shape = "\t".join(f"$({name})" for name in _FIELDS)
    targets = process.run(["apt-get", "indextargets", "--format", shape, "Created-By: Packages"], timeout=60).text
    main, security = parse_targets(targets.splitlines(), _read_mirror_list)
    if main is None:
        raise HostError("the configuration of apt has no Debian archive (component main) over http or https", hint=hint)
    options = parse_proxy(process.run(["apt-config", "dump"], timeout=60).text.splitlines())
    return AptHost(main, security, options)


def parse_targets(
    lines: Iterable[str], read_mirror_list: Callable[[str], str]
) -> tuple[AptSource | None, AptSource | None]:
    """The main and the security archive among apt's index targets, one a line, the fields tab-separated.

    The origin is known only after an `apt-get update`; before it, an archive whose path ends in /debian is used.
    """
    found: dict[bool, list[tuple[int, str]]] = {False: [], True: []}
    for line in lines:
        values = line.split("\t")
        if len(values) != len(_FIELDS):
            continue
        uri, release, component, origin = values
        uri = _resolve_mirror_list(uri, read_mirror_list).rstrip("/")
        parts = urlsplit(uri)
        if component != "main" or parts.scheme not in ("http", "https"):
            continue
        security = release.endswith(("-security", "/updates"))
        if origin == "Debian":
            rank = 0
        elif origin.startswith("$(") and parts.path.endswith(("/debian", "/debian-security")):
            rank = 1
        else:
            continue
        if not security and "-" in release:
            rank += 2  # -updates and -backports usually come from the same archive
        found[security].append((rank, uri))
    main, security_uri = (min(found[kind], default=None, key=lambda item: item[0]) for kind in (False, True))
    return (
        AptSource(main[1], False) if main else None,
        AptSource(security_uri[1], True) if security_uri else None,
    )


def parse_proxy(lines: Iterable[str]) -> tuple[str, ...]:
    """Proxy and certificate settings of `apt-config dump`, as lines of an apt.conf. `DIRECT` is kept, because it
    disables a proxy."""
    return tuple(f'{match[1]} "{match[2]}";' for line in lines if (match := _PROXY.fullmatch(line.strip())))


def _resolve_mirror_list(uri: str, read: Callable[[str], str]) -> str:
    """Cloud images list their mirrors in a file, `mirror+file:/etc/apt/mirrors/debian.list`: take the first."""
    if not uri.startswith("mirror+file:"):
        return uri
    lines = read("/" + uri.removeprefix("mirror+file:").strip("/")).splitlines()
    return next((line.split()[0] for line in lines if line.strip() and not line.startswith("#")), uri)


def _read_mirror_list(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError:
        return ""
