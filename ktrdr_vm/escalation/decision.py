"""The limits of approvals: one pure decision, for the pre-approvals of the guard and for the command of a person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ktrdr_vm.escalation.packet import Kind, Packet
from ktrdr_vm.policy.owner_policy import EscalationPolicy


@dataclass(frozen=True)
class Refusal:
    """The reason why it may not be approved, and what to do instead."""

    message: str
    hint: str


def check_request(packet: Packet, given: dict[str, Any], seconds: int, line: EscalationPolicy) -> Refusal | None:
    """The reason why `given` may not be approved for `seconds`, or None. `given` is a result of parse_request."""
    if packet.kind not in line.kinds:
        return Refusal(
            f"the owner of this host does not allow {packet.kind} by escalation",
            "add it to escalations.kinds in the owner's policy, or change the profile",
        )
    if not is_within(packet.kind, given, packet.request):
        return Refusal(
            "the approval exceeds the request", f"an approval can only narrow the request, which was {packet.request}"
        )
    if packet.kind != "decision" and not 0 < seconds <= line.longest:
        return Refusal(
            f"{seconds} s is longer than the {line.longest} s of the owner's policy",
            "approve a shorter time with --seconds",
        )
    if seconds > packet.seconds:
        return Refusal(
            f"{seconds} s is longer than the {packet.seconds} s of the request",
            "an approval can only narrow the request",
        )
    return None


def is_preapproved(packet: Packet, line: EscalationPolicy) -> bool:
    """True if a pre-approval covers the whole request, within the same limits as any other approval."""
    if packet.kind != "network" or check_request(packet, packet.request, packet.seconds, line) is not None:
        return False
    host, ports = packet.request["host"], set(packet.request["ports"])
    return any(
        ports <= set(one.ports)
        and packet.seconds <= one.seconds
        and (host == one.host or (one.host.startswith("*.") and host.endswith(one.host[1:]) and "*" not in host))
        for one in line.approved
    )


def is_within(kind: Kind, given: dict[str, Any], asked: dict[str, Any]) -> bool:
    """True if `given` is the request or a part of it."""
    if kind == "network":
        wide = asked["host"]
        inside = given["host"] == wide or (wide.startswith("*.") and given["host"].endswith(wide[1:]))
        return inside and set(given["ports"]) <= set(asked["ports"])
    if kind == "resources":
        return given.keys() <= asked.keys() and all(given[name] <= asked[name] for name in given)
    if kind == "mount":
        beneath = (
            PurePosixPath(given["source"]).is_relative_to(asked["source"])
            and ".." not in PurePosixPath(given["source"]).parts
        )
        return beneath and given["target"] == asked["target"] and (given["readonly"] or not asked["readonly"])
    return given == asked
