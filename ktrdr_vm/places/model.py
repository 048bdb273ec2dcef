"""The places of a person, from `places.yaml` in the folder of their configuration. It is never read from a
repository."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ktrdr_vm.errors import DocumentError, UsageError
from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.schema import check_shape
from ktrdr_vm.profile.strict_yaml import MAX_BYTES, load_yaml
from ktrdr_vm.users import find_configuration

Kind = Literal["local", "ssh", "slurm"]
# What OpenSSH takes as a destination; it cannot begin with a dash, which would make it an option.
_HOST = r"[A-Za-z0-9_][A-Za-z0-9_.:@%\[\]-]{0,254}"
_ABSOLUTE = r"/[A-Za-z0-9_./+-]{1,200}"
_NAME = r"[a-z0-9](?:[a-z0-9-]{0,31})"
_HINT = "correct places.yaml; `ktrdr-vm places` shows what it contains"
# Two attempts, and the lease that a cluster's lost node needs, unless the file says otherwise.
_ATTEMPTS = 1
_GRACE = "120s"
LOCAL = "local"

PLACES: dict[str, Any] = {
    "places": {
        "type": "dict",
        "required": True,
        "keysrules": {"type": "string", "regex": _NAME},
        "valuesrules": {
            "type": "dict",
            "schema": {
                "kind": {"type": "string", "required": True, "allowed": ["local", "ssh", "slurm"]},
                "host": {"type": "string", "regex": _HOST},
                "program": {"type": "string", "regex": _ABSOLUTE},
                "ssh_config": {"type": "string", "empty": False, "maxlength": 400},
                "spool": {"type": "string", "regex": _ABSOLUTE},
                "cache": {"type": "string", "regex": _ABSOLUTE},
                "options": {
                    "type": "list",
                    "maxlength": 40,
                    "schema": {"type": "string", "regex": r"--[a-z][!-~]{1,200}"},
                },
                "together": {"type": "integer", "notbool": True, "min": 1, "max": 1000},
                "attempts": {"type": "integer", "notbool": True, "min": 1, "max": 10},
                "grace": {"type": "string", "empty": False},
            },
        },
    },
}
_ALLOWED = {
    "local": {"attempts", "grace"},
    "ssh": {"host", "program", "ssh_config", "attempts", "grace"},
    "slurm": {"host", "program", "ssh_config", "spool", "cache", "options", "together", "attempts", "grace"},
}
_REQUIRED = {"local": (), "ssh": ("host",), "slurm": ("spool",)}


@dataclass(frozen=True)
class Place:
    """Where runs happen. `host` is empty for this host; `program` is `ktrdr-vm` there; `grace` is the lease of an
    attempt in seconds, and `together` the most runs of one array at a time, 0 for all."""

    name: str
    kind: Kind
    host: str = ""
    program: str = "ktrdr-vm"
    ssh_config: str = ""
    spool: str = ""
    cache: str = ""
    options: tuple[str, ...] = ()
    together: int = 0
    attempts: int = _ATTEMPTS
    grace: int = 120

    @property
    def is_local(self) -> bool:
        """True for the place whose instances are those of this host."""
        return self.kind == "local"

    @property
    def is_cluster(self) -> bool:
        """True if its runs are on other hosts than the one that answers."""
        return self.kind == "slurm"


def find_places_file() -> Path:
    """The file of this person's places; it need not exist."""
    return find_configuration() / "places.yaml"


def read_places() -> dict[str, Place]:
    """All places by name. `local` always exists. DocumentError with every error of the file."""
    path = find_places_file()
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
                raise UsageError(
                    "other users can change the file, which names programs and hosts",
                    where=str(path),
                    hint=f"chown it to yourself, and `chmod go-w {path}`",
                )
            return parse_places(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        return {LOCAL: Place(LOCAL, "local")}
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path), hint="make it a readable file") from None


def find_place(name: str) -> Place:
    """The place of that name. UsageError if there is none."""
    places = read_places()
    if name not in places:
        raise UsageError(
            f"there is no place {name!a:.60}; known: {', '.join(sorted(places))}",
            where=str(find_places_file()),
            hint="add it to that file, as docs/places.md shows",
        )
    return places[name]


def parse_places(text: str | bytes, source: str) -> dict[str, Place]:
    """The places of a document. DocumentError with every error."""
    document = load_yaml(text, source)
    problems = check_shape(document, PLACES)
    if problems:
        raise DocumentError(problems, hint=_HINT)
    found = {LOCAL: Place(LOCAL, "local")}
    for name, data in document.data["places"].items():
        at = ("places", name)
        kind: Kind = data["kind"]
        for key in sorted(data.keys() - {"kind"} - _ALLOWED[kind]):
            problems.append(document.problem((*at, key), f"has no meaning for a place of kind {kind}", at_key=True))
        for key in _REQUIRED[kind]:
            if key not in data:
                problems.append(document.problem(at, f"{key} is required for a place of kind {kind}"))
        if name == LOCAL and kind != "local":
            problems.append(document.problem((*at, "kind"), "the place `local` is this host"))
        try:
            grace = scalars.parse_duration(data.get("grace", _GRACE))
            if not 10 <= grace <= 3600:
                raise ValueError("must be 10s to 1h")
        except ValueError as error:
            problems.append(document.problem((*at, "grace"), str(error)))
            grace = 0
        ssh_config = data.get("ssh_config", "")
        try:
            ssh_config = str(Path(ssh_config).expanduser()) if ssh_config else ""
        except RuntimeError:
            problems.append(document.problem((*at, "ssh_config"), "there is no such home directory"))
        found[name] = Place(
            name,
            kind,
            data.get("host", ""),
            data.get("program", "ktrdr-vm"),
            ssh_config,
            data.get("spool", ""),
            data.get("cache", ""),
            tuple(data.get("options", ())),
            data.get("together", 0),
            data.get("attempts", _ATTEMPTS),
            grace,
        )
    if problems:
        raise DocumentError(problems, hint=_HINT)
    return found
