"""Requests of the inbox to the guard, and their answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Escalation, EscalationStore, FullError
from ktrdr_vm.host.messages import require_fields, require_number, require_text


@dataclass(frozen=True)
class ListRequest:
    """All escalations, or the one of this id."""

    id: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"op": "list", "id": self.id}

    @classmethod
    def from_json(cls, content: object) -> ListRequest:
        return cls(require_text(require_fields(content, "op", "id")["id"]))


@dataclass(frozen=True)
class SubmitRequest:
    """A packet, as the inbox has parsed it, and how many the inbox has refused since the last one."""

    packet: dict[str, Any]
    suppressed: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"op": "submit", "packet": self.packet, "suppressed": self.suppressed}

    @classmethod
    def from_json(cls, content: object) -> SubmitRequest:
        fields = require_fields(content, "op", "packet", "suppressed")
        if not isinstance(fields["packet"], dict):
            raise ValueError("a packet is an object")
        return cls(fields["packet"], require_number(fields["suppressed"], 0, 2**40))


def parse_request(raw: bytes) -> ListRequest | SubmitRequest:
    """What the inbox asks. ValueError, or RecursionError, for what is none of it."""
    content = json.loads(raw)
    op = content.get("op") if isinstance(content, dict) else None
    if op not in ("list", "submit"):
        raise ValueError(f"there is no request {str(op)[:40]!a}")
    return ListRequest.from_json(content) if op == "list" else SubmitRequest.from_json(content)


def answer_request(
    store: EscalationStore, request: ListRequest | SubmitRequest, arrived: Callable[[Escalation], None]
) -> dict[str, Any]:
    """The guard's side of the channel. `arrived` is called for each new one. The packet is checked again."""
    try:
        if isinstance(request, ListRequest):
            wanted = request.id
            found = [one for one in store.list() if not wanted or one.id == wanted]
            if wanted and not found:
                return {"error": f"there is no escalation {wanted!a}"}
            shown = [_show(one) for one in found]
            return {"escalations": shown[0] if wanted else shown}
        made, new = store.submit(parse_packet(request.packet))
        if new:
            arrived(made)
        return _show(store.find(made.id))
    except FullError as error:
        return {"error": str(error)}


def _show(one: Escalation) -> dict[str, Any]:
    """The answer to the guest about an escalation. An approval that is recorded and not yet applied is pending for the
    guest."""
    answer = one.answer if one.answer is not None and not one.answer.waiting else None
    return {
        "id": one.id,
        "kind": one.packet.kind,
        "state": "pending" if one.answer is not None and answer is None else one.current,
        "answer": {"reason": answer.reason, "request": answer.request, "seconds": answer.seconds, "at": answer.at}
        if answer
        else None,
    }
