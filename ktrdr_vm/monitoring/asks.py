"""An escalation as text: for `escalations show`, and for `top`."""

from __future__ import annotations

from ktrdr_vm.escalation.store import Escalation
from ktrdr_vm.report.escape import escape_text

_BREAK = "\n"


def describe_ask(one: Escalation) -> str:
    """All parts of an escalation, whole: what is approved is read first. A line for each key of the request."""
    packet = one.packet
    parts = [
        ("asks for", packet.kind),
        *((f"  {key}", str(value)) for key, value in packet.request.items()),
        ("  for", f"{packet.seconds} s"),
        ("blocked", packet.blocked),
        ("why", packet.why),
        *(("option", option) for option in packet.options),
        ("recommends", packet.recommendation),
        ("decision", packet.decision),
        ("evidence", packet.evidence),
    ]
    return "\n".join(
        f"{title:<11}{escape_text(text).strip().replace(_BREAK, _BREAK + ' ' * 11)}" for title, text in parts
    )
