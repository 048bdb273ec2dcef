"""A request: what is to be run, as data and as the file `request.json` of its folder. It contains no secret and no
environment.

A request is read from a folder that another host may have written, so every field is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host.beneath import check_name
from ktrdr_vm.host.git import COMMIT
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.plan import canonical_json
from ktrdr_vm.profile.load import LoadedProfile

SCHEMA = 1
MAX_DOCUMENT = 8 * 1024 * 1024
MAX_FILES = 4000
MAX_TOTAL = 4 * 1024 * 1024 * 1024
# Names in the folder of a request.
DOCUMENT = "request.json"
BUNDLE = "workspace.bundle"
BASE = "base.bundle"
HISTORY = (BASE, BUNDLE)
UNCOMMITTED = "uncommitted.tar"
FILES = "files/"
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BRANCH = re.compile(r"(?!.*(?:\.\.|//|@\{|\.lock(?:/|$)))(?![-./])[^\x00-\x20\x7f~^:?*\[\\]{1,200}(?<![./])")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_REF = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64}) refs/" + _BRANCH.pattern)
MAX_REFS = 2000
_SHALLOW = re.compile(r"(?:(?:[0-9a-f]{40}|[0-9a-f]{64})\n){0,10000}")
_HINT = "submit it again with this version of ktrdr-vm"


@dataclass(frozen=True)
class SentFile:
    """One file of the folder besides `request.json`, with its size in bytes and its sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Request:
    """`profile` is the path of the profile beneath `files/`; `files/` is the workspace if `in_workspace`. `commit` is
    empty without one.

    With `warm`, image and template are built and nothing is run; `node` is the only one where it may be, empty for any.

    `refs` are those of the workspace besides its branch, each `<id> <name>`. The history is in `workspace.bundle`; if
    the place had a part of it already, that part is in `base.bundle`, and one of the two may be missing.

    `sent_secrets` are those of `secrets` whose values come with `start`, and not from a source of the place.

    `digest` is that of `digest_judged`; `deleted` are the tracked files that the workspace does not have; `seconds`
    bounds the run.
    """

    request_id: str
    instance_id: str
    who: str
    place: str
    created_at: str
    profile: str
    in_workspace: bool
    digest: str
    branch: str = ""
    commit: str = ""
    shallow: str = ""
    refs: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    cold: bool = False
    warm: bool = False
    node: str = ""
    accept_changes: bool = False
    secrets: tuple[str, ...] = ()
    sent_secrets: tuple[str, ...] = ()
    vcpus: int = 1
    memory: int = 512
    seconds: int = 3600
    attempts: int = 1
    grace: int = 120
    deleted: tuple[str, ...] = ()
    files: tuple[SentFile, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA, **asdict(self)}


def make_request_id() -> str:
    """A unique id, sortable by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def parse_request_id(word: object) -> str:
    """The id of a request. UsageError for anything else, since it becomes the name of a folder."""
    if isinstance(word, str) and _ID.fullmatch(word):
        return word
    raise UsageError(f"{word!a:.80} is not the id of a request", where="REQUEST", hint="`ktrdr-vm queue` lists them")


def digest_judged(
    loaded: LoadedProfile,
    instance_id: str,
    playbooks: tuple[tuple[str, str], ...],
    image: str,
    branch: str,
    commit: str,
) -> str:
    """sha256 over the parts of a plan that do not depend on a host: profile, playbooks, image, base."""
    content = {
        "instance_id": instance_id, "profile": loaded.data, "playbooks": playbooks, "image": image, "base_ref": branch,
        "base_commit": commit,
    }  # fmt: skip
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def parse_request(content: bytes, where: str) -> Request:
    """The request in the bytes of `request.json`. UsageError for the first field that is not valid."""
    try:
        data = json.loads(content)
        if not isinstance(data, dict):
            raise ValueError("it is not an object")
        if data.get("schema_version") != SCHEMA:
            raise ValueError(f"its schema is {data.get('schema_version')!a:.20}, and this version reads {SCHEMA}")
        request = _build(data)
        _check(request)
    except (ValueError, TypeError, KeyError, RecursionError, KtrdrError) as error:
        raise UsageError(f"this is not a valid request: {error}", where=where, hint=_HINT) from None
    return request


def _build(data: dict[str, Any]) -> Request:
    kinds = {str: "text", bool: "true or false", int: "a number", list: "a list"}
    fields: dict[str, Any] = {}
    known: dict[str, str] = Request.__annotations__
    if unknown := data.keys() - known.keys() - {"schema_version"}:
        raise ValueError(f"unknown field {min(unknown)!a:.60}")
    for name, annotation in known.items():
        kind = str if annotation == "str" else bool if annotation == "bool" else int if annotation == "int" else list
        if type(data.get(name)) is not kind:
            raise ValueError(f"{name} must be {kinds[kind]}")
        fields[name] = tuple(data[name]) if kind is list else data[name]
    fields["files"] = tuple(SentFile(one["name"], one["size"], one["sha256"]) for one in fields["files"])
    return Request(**fields)


def _check(request: Request) -> None:
    parse_request_id(request.request_id)
    parse_instance_id(request.instance_id)
    checks = (
        ("digest", _DIGEST.fullmatch(request.digest)),
        ("commit", not request.commit or COMMIT.fullmatch(request.commit)),
        ("branch", not request.branch or _BRANCH.fullmatch(request.branch)),
        ("shallow", _SHALLOW.fullmatch(request.shallow)),
        (
            "refs",
            len(request.refs) <= MAX_REFS and all(isinstance(one, str) and is_ref(one) for one in request.refs),
        ),
        ("node", not request.node or is_node(request.node)),
        ("profile", not check_name(request.profile)),
        ("who", len(request.who) <= 200 and request.who.isprintable()),
        ("place", len(request.place) <= 64 and request.place.isprintable()),
        ("created_at", len(request.created_at) <= 40 and request.created_at.isprintable()),
        ("gates", len(request.gates) <= 100 and all(_is_gate(gate) for gate in request.gates)),
        (
            "secrets",
            len(request.secrets) <= 250 and all(isinstance(name, str) and len(name) <= 200 for name in request.secrets),
        ),
        ("sent_secrets", set(request.sent_secrets) <= set(request.secrets)),
        ("deleted", all(isinstance(name, str) and not _is_unsafe(name) for name in request.deleted)),
        ("vcpus", 1 <= request.vcpus <= 1024),
        ("memory", 1 <= request.memory <= 1 << 24),
        ("seconds", 1 <= request.seconds <= 90 * 86400),
        ("attempts", 1 <= request.attempts <= 10),
        ("grace", 1 <= request.grace <= 3600),
        ("files", _are_files(request)),
    )
    for name, valid in checks:
        if not valid:
            raise ValueError(f"{name} is not valid: {getattr(request, name)!a:.100}")


def _is_gate(gate: object) -> bool:
    return isinstance(gate, str) and not check_name(gate)


def _is_unsafe(name: str) -> bool:
    """True for a path that cannot be in a workspace; control characters are possible there."""
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or "\0" in name or bool({"..", ".git"} & {part.lower() for part in parts})


def _are_files(request: Request) -> bool:
    names = [one.name for one in request.files]
    return (
        len(names) <= MAX_FILES
        and len(set(names)) == len(names)
        and sum(one.size for one in request.files) <= MAX_TOTAL
        and all(
            is_file_name(one.name) and one.size >= 0 and bool(_DIGEST.fullmatch(one.sha256)) for one in request.files
        )
        and (FILES + request.profile) in names
        and (not request.commit or any(name in names for name in HISTORY))
    )


def is_digest(word: object) -> bool:
    """True for a sha256 in hexadecimal."""
    return isinstance(word, str) and bool(_DIGEST.fullmatch(word))


def is_node(word: object) -> bool:
    """True for the name of a node of a cluster."""
    return isinstance(word, str) and bool(_NODE.fullmatch(word))


def is_ref(line: str) -> bool:
    """True for `<id> <name>` of a ref that a workspace may have."""
    return bool(_REF.fullmatch(line))


def is_file_name(name: object) -> bool:
    """True for a name that a request may contain besides `request.json`."""
    if name in (*HISTORY, UNCOMMITTED):
        return True
    return isinstance(name, str) and name.startswith(FILES) and not check_name(name) and not _is_unsafe(name)
