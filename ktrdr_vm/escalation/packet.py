"""The escalation packet: six texts and an exact request. Pure; the packet comes from a guest and is not trusted.

Checked twice by the same function: by the unprivileged process that reads HTTP, and by the guard that stores it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ktrdr_vm.profile import scalars

Kind = Literal["network", "secret", "mount", "resources", "decision"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_PACKET = 64 * 1024
_MAX_TEXT = 4000
_MAX_EVIDENCE = 16_000
_MAX_OPTIONS = 10
# Longer needs than a working day require a change of the profile.
MAX_SECONDS = 24 * 3600
DEFAULT_SECONDS = 3600

# The six texts, in their order.
_TEXTS = {
    "blocked": _MAX_TEXT,
    "why": _MAX_TEXT,
    "recommendation": _MAX_TEXT,
    "decision": _MAX_TEXT,
    "evidence": _MAX_EVIDENCE,
}


_REQUESTS: dict[Kind, set[str]] = {
    "network": {"host", "ports"},
    "secret": {"name"},
    "mount": {"source", "target", "readonly"},
    "resources": {"memory", "vcpus"},
    "decision": set(),
}


class PacketError(ValueError):
    """The packet is not valid. Its text is for the guest: one problem a line."""


@dataclass(frozen=True)
class Packet:
    """One request. `request` depends on `kind`:

    network {host, ports}; secret {name}; mount {source, target, readonly}; resources {memory (MiB), vcpus}; decision
    {}. `seconds` is the requested duration.
    """

    kind: Kind
    blocked: str
    why: str
    options: tuple[str, ...]
    recommendation: str
    decision: str
    evidence: str
    request: dict[str, Any]
    seconds: int = DEFAULT_SECONDS

    @property
    def digest(self) -> str:
        """Identifies equal packets, which are one escalation."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "options": list(self.options)}


def parse_packet(content: object) -> Packet:
    """A packet from decoded JSON, or PacketError with all errors."""
    if not isinstance(content, dict):
        raise PacketError("the packet must be a JSON object")
    problems: list[str] = []
    unknown = content.keys() - {"kind", "options", "request", "seconds", *_TEXTS}
    if unknown:
        problems.append(f"unknown: {', '.join(sorted(str(key)[:40] for key in unknown)[:10])}")
    texts = {name: _read_text(content, name, limit, problems) for name, limit in _TEXTS.items()}
    kind = content.get("kind")
    if kind not in KINDS:
        problems.append(f"kind: must be one of {', '.join(KINDS)}")
    options = content.get("options")
    if not isinstance(options, list) or not 1 <= len(options) <= _MAX_OPTIONS:
        problems.append(f"options: must be a list of 1 to {_MAX_OPTIONS} texts")
        options = []
    elif any(not isinstance(one, str) or not one.strip() or len(one) > _MAX_TEXT for one in options):
        problems.append(f"options: each must be a text of at most {_MAX_TEXT} characters")
    seconds = content.get("seconds", DEFAULT_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= MAX_SECONDS:
        problems.append(f"seconds: must be a whole number from 1 to {MAX_SECONDS}")
    request: dict[str, Any] = {}
    if kind in KINDS:
        try:
            request = parse_request(kind, content.get("request", {}))
        except ValueError as error:
            problems.append(f"request: {error}")
    if problems:
        raise PacketError("\n".join(problems))
    return Packet(kind=kind, options=tuple(map(_make_valid, options)), request=request, seconds=seconds, **texts)  # type: ignore[arg-type]


def parse_request(kind: Kind, content: object) -> dict[str, Any]:
    """The request in its canonical form, also for the narrowed request of an approval. ValueError with the error."""
    if not isinstance(content, dict):
        raise ValueError("must be an object")
    known = _REQUESTS[kind]
    if content.keys() - known:
        raise ValueError(f"a {kind} request has the keys {', '.join(sorted(known)) or '(none)'}")
    if kind == "network":
        ports = content.get("ports", [443])
        if (
            not isinstance(ports, list)
            or not 1 <= len(ports) <= 16
            or any(type(port) is not int or not 0 < port < 65536 for port in ports)
        ):
            raise ValueError("ports: must be 1 to 16 numbers from 1 to 65535")
        return {"host": scalars.parse_host(content.get("host")), "ports": sorted(set(ports))}
    if kind == "secret":
        name = content.get("name")
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= 63
            or not name.replace("_", "").replace("-", "").isalnum()
            or not name.isascii()
        ):
            raise ValueError("name: must consist of letters, digits, - and _")
        return {"name": name}
    if kind == "mount":
        source, target = scalars.parse_host_path(content.get("source")), scalars.parse_guest_path(content.get("target"))
        readonly = content.get("readonly", True)
        if not isinstance(readonly, bool):
            raise ValueError("readonly: must be true or false")
        return {"source": source, "target": target, "readonly": readonly}
    if kind == "resources":
        found = {name: content[name] for name in ("memory", "vcpus") if name in content}
        if not found or any(type(value) is not int or not 0 < value < 2**20 for value in found.values()):
            raise ValueError("must have memory (MiB) or vcpus, as whole numbers")
        return found
    return {}


def _read_text(content: dict[str, Any], name: str, limit: int, problems: list[str]) -> str:
    text = content.get(name)
    if not isinstance(text, str) or not text.strip():
        problems.append(f"{name}: must be a text that is not empty")
        return ""
    if len(text) > limit:
        problems.append(f"{name}: must have at most {limit} characters")
    return _make_valid(text)


def _make_valid(text: str) -> str:
    """A lone surrogate is not valid text and cannot be written to a file."""
    return text.encode("utf-8", "replace").decode()
