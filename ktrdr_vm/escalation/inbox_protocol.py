"""What the inbox asks of the guard, and the guard's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Escalation, EscalationStore, FullError


def answer_request(store: EscalationStore, request: dict[str, Any], arrived: Callable[[Escalation], None]) -> dict[str, Any]:
    """The guard's side of the channel. `arrived` hears of each new one. The packet is checked again: the other side may be the guest's."""
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
    """What the guest is told of it."""
    answer = one.answer
    return {
        "id": one.id,
        "kind": one.packet.kind,
        "state": one.current,
        "answer": {"reason": answer.reason, "request": answer.request, "seconds": answer.seconds, "at": answer.at} if answer else None,
    }
