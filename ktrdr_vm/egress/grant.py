"""Grants: network rules that are added to a running instance and expire. Parses requests for grants, and checks what
may be granted.

The expiry is on the boot clock, which cannot be set and continues while the host is suspended. A grant extends the
allowlist of the profile, never the owner's policy: a reserved address needs an exception of the owner also in a grant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.reserved import is_reserved
from ktrdr_vm.profile.scalars import parse_cidr, parse_host, parse_plain_text

# Maximum for one instance at one time. The proxy has more grant slots than this.
MAX_GRANTS = 32
MAX_SECONDS = 7 * 24 * 3600
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Grant:
    """One rule that applies until `ends`, a time of `host.clock.boottime`."""

    id: str
    rule: EgressRule
    ends: float

    @property
    def name(self) -> str:
        """The name of the rule in the ledger."""
        return f"grant:{self.id}"

    def to_json(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"host": self.rule.host} if self.rule.host else {"cidr": str(self.rule.cidr)}
        return {"id": self.id, "rule": rule | {"ports": list(self.rule.ports)}, "reason": self.rule.reason}


def parse_grant(data: Any, now: float) -> Grant:
    """A grant from a request: `id`, `rule` (`host` or `cidr`, and `ports`), `seconds`, `reason`. ValueError, with the
    reason, if the request is not valid."""
    if not isinstance(data, dict) or not isinstance(data.get("rule"), dict):
        raise ValueError("a grant is a mapping with id, rule, seconds and reason")
    if not isinstance(data.get("id"), str) or not _ID.fullmatch(data["id"]):
        raise ValueError("a grant's id is 1 to 64 letters, digits, dots, dashes and underscores")
    seconds = data.get("seconds")
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not math.isfinite(seconds)
        or not 0 < seconds <= MAX_SECONDS
    ):
        raise ValueError(f"a grant applies for more than 0 and at most {MAX_SECONDS} seconds")
    return Grant(data["id"], parse_rule(data["rule"], data.get("reason", "")), now + seconds)


def parse_rule(data: dict[str, Any], reason: Any) -> EgressRule:
    if set(data) - {"host", "cidr", "ports"} or ("host" in data) == ("cidr" in data):
        raise ValueError("a rule has either host or cidr, and ports")
    ports = data.get("ports", [443])
    if not isinstance(ports, list) or not 1 <= len(ports) <= 64:
        raise ValueError("ports are a list of 1 to 64 numbers")
    if not all(isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536 for port in ports):
        raise ValueError("a port is a number from 1 to 65535")
    return EgressRule(
        host=parse_host(data["host"]) if "host" in data else "",
        cidr=parse_cidr(data["cidr"]) if "cidr" in data else None,
        ports=tuple(sorted(set(ports))),
        reason=parse_plain_text(reason),
    )


def refuse_grant(
    rule: EgressRule, exceptions: Iterable[tuple[IPv4Address, int]], on_link: Iterable[IPv4Network] = ()
) -> str:
    """The reason why the rule may not be granted; empty if it may. `exceptions` are those of the owner, address and
    port; `on_link` are the networks that the host is connected to."""
    if rule.cidr is None:
        return ""
    if is_reserved(rule.cidr):
        closed = "a reserved range"
    elif any(rule.cidr.overlaps(network) for network in on_link):
        closed = "a network of this host"
    else:
        return ""
    if rule.cidr.prefixlen != 32:
        return f"{rule.cidr} reaches into {closed}; only single addresses can be allowed there"
    owned = set(exceptions)
    missing = [port for port in rule.ports if (rule.cidr.network_address, port) not in owned]
    return f"{rule.cidr.network_address}:{missing[0]} is in {closed} and not in the owner's list" if missing else ""
