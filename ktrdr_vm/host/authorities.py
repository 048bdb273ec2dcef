"""Certificates of authorities that this host trusts besides those of its distribution, such as a company's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ktrdr_vm.host.owner import may_read, reading_as

# The folder of Debian for certificates of the administrator. A client may name a file of its own.
FOLDER = Path("/usr/local/share/ca-certificates")
# A larger file is the bundle of a distribution, which the guest has.
_MOST_BYTES = 64 * 1024
_MOST = 32
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]{1,16384}-----END CERTIFICATE-----")


def find_authorities(
    named: Iterable[str], owner: tuple[int, int], folder: Path = FOLDER
) -> tuple[tuple[str, str], ...]:
    """File and PEM text of each certificate: those of the folder, and those of files that package clients of `owner`
    name."""
    paths = sorted(folder.rglob("*.crt")) if folder.is_dir() else []
    found: dict[str, str] = {}
    for path in [*paths, *(Path(name) for name in named if name.startswith("/"))]:
        for certificate in _PEM.findall(_read(path, owner)):
            found.setdefault("".join(certificate.decode("ascii").split()), str(path))
    return tuple((found[key], _format(key)) for key in sorted(found, key=lambda key: (found[key], key)))[:_MOST]


def _read(path: Path, owner: tuple[int, int]) -> bytes:
    """The file as far as the owner may read it; nothing for a bundle or a missing file."""
    try:
        with reading_as(owner):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            return file.read() if facts.st_size <= _MOST_BYTES and may_read(facts, owner) else b""
    except OSError:
        return b""


def _format(key: str) -> str:
    """PEM with lines of 64 characters, regardless of the lines of the file."""
    body = key.removeprefix("-----BEGINCERTIFICATE-----").removesuffix("-----ENDCERTIFICATE-----")
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
