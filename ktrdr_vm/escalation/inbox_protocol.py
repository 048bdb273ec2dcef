"""Requests of the inbox to the guard, and their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Escalation, EscalationStore, FullError


def answer_request(store: EscalationStore, request: dict[str, Any], arrived: Callable[[Escalation], None]) -> dict[str, Any]:
    """The side of the guard. `arrived` is called with each new escalation. Packets are checked again: the inbox is not trusted."""
    try:
        if request["op"] == "list":
            wanted = str(request["id"])
            found = [one for one in store.list() if not wanted or one.id == wanted]
            if wanted and not found:
                return {"error": f"there is no escalation {wanted!a}"}
            shown = [_show(one) for one in found]
            return {"escalations": shown[0] if wanted else shown}
        made, new = store.submit(parse_packet(request["packet"]))
        if new:
            arrived(made)
        return _show(store.find(made.id))
    except FullError as error:
        return {"error": str(error)}


def _show(one: Escalation) -> dict[str, Any]:
    """The answer to the guest about an escalation."""
    answer = one.answer
    return {
        "id": one.id,
        "kind": one.packet.kind,
        "state": one.current,
        "answer": {"reason": answer.reason, "request": answer.request, "seconds": answer.seconds, "at": answer.at} if answer else None,
    }
