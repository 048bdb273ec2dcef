"""Messages between the resolver and the guard: one JSON object in a packet.

A guard that runs during an upgrade restarts the resolver in the new version, so the format of the messages must not
change.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.host.messages import require_fields, require_list, require_number, require_text
from ktrdr_vm.report.ledger_row import check_fields

# Fields of the ledger that the resolver may set; time and identity are set by the guard.
_NOTED = frozenset({"name", "address", "addresses", "ttl", "rule", "type", "message"})
_COUNTED = ("rate", "suppressed")
_MOST = 2**40


@dataclass(frozen=True)
class Note:
    """A decision on a query, for the ledger."""

    kind: str
    verdict: str
    fields: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"note": [self.kind, self.verdict, self.fields]}

    @classmethod
    def from_json(cls, content: object) -> Note:
        kind, verdict, fields = require_list(require_fields(content, "note")["note"], 3)
        if (
            kind != "dns"
            or verdict not in ("allow", "deny")
            or not isinstance(fields, dict)
            or not fields.keys() <= _NOTED
        ):
            raise ValueError(f"it has no {str(kind)[:20]!a} {str(verdict)[:20]!a} line with {str(sorted(fields))[:80]}")
        return cls(kind, verdict, check_fields(fields))


@dataclass(frozen=True)
class Count:
    """The number of queries without a line of their own: beyond the guest's rate limit (`rate`), or while the guard was
    busy (`suppressed`)."""

    rule: str
    count: int

    def to_json(self) -> dict[str, Any]:
        return {"count": [self.rule, self.count]}

    @classmethod
    def from_json(cls, content: object) -> Count:
        rule, count = require_list(require_fields(content, "count")["count"], 2)
        if rule not in _COUNTED:
            raise ValueError(f"it counts {' or '.join(_COUNTED)}")
        return cls(rule, require_number(count, 1, _MOST))


@dataclass(frozen=True)
class AllowRequest:
    """Addresses of an allowed name, to be opened for `ttl` seconds. The reply carries the same number."""

    number: int
    name: str
    addresses: tuple[str, ...]
    ttl: int

    def to_json(self) -> dict[str, Any]:
        return {"allow": [self.name, list(self.addresses), self.ttl], "number": self.number}

    @classmethod
    def from_json(cls, content: object) -> AllowRequest:
        fields = require_fields(content, "allow", "number")
        name, addresses, ttl = require_list(fields["allow"], 3)
        if not isinstance(addresses, list):
            raise ValueError("addresses are a list")
        number = require_number(fields["number"], 0, _MOST)
        return cls(number, require_text(name), tuple(map(require_text, addresses)), require_number(ttl, 0, _MOST))


@dataclass(frozen=True)
class AllowReply:
    """The addresses of the request that were opened."""

    number: int
    accepted: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, "accepted": list(self.accepted)}

    @classmethod
    def from_json(cls, content: object) -> AllowReply:
        fields = require_fields(content, "number", "accepted")
        if not isinstance(fields["accepted"], list):
            raise ValueError("addresses are a list")
        return cls(require_number(fields["number"], 0, _MOST), tuple(map(require_text, fields["accepted"])))


@dataclass(frozen=True)
class Grants:
    """The grants that apply now, each as an id and its compiled policy."""

    grants: list[list[Any]]

    def to_json(self) -> dict[str, Any]:
        return {"grants": self.grants}

    @classmethod
    def from_json(cls, content: object) -> Grants:
        grants = require_fields(content, "grants")["grants"]
        if not isinstance(grants, list):
            raise ValueError("grants are a list")
        return cls([require_list(one, 2) for one in grants])


def parse_resolver_message(raw: bytes) -> Note | Count | AllowRequest:
    """A message of the resolver. ValueError, or RecursionError, for anything else."""
    content = json.loads(raw)
    for one in (Note, Count):
        if isinstance(content, dict) and one.__name__.lower() in content:
            return one.from_json(content)
    return AllowRequest.from_json(content)


def parse_guard_message(raw: bytes) -> AllowReply | Grants:
    """A message of the guard. ValueError for anything else."""
    content = json.loads(raw)
    return Grants.from_json(content) if "grants" in content else AllowReply.from_json(content)
