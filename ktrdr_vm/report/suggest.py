"""The smallest profile fragment that allows the denied destinations, except reserved addresses, which only the policy
can allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from ktrdr_vm.profile.reserved import is_reserved
from ktrdr_vm.profile.scalars import parse_host


def render_suggestion(denied: Iterable[Mapping[str, Any]]) -> str:
    """YAML with the count and the task of each destination as a comment. `denied` are rows of report.json, also
    observed ones."""
    wanted: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    for row in denied:
        destination, port, count = str(row["host"] or row["address"]), int(row["port"]), int(row["count"])
        rule, during = str(row["rule"]), str(row.get("during", ""))
        if rule.startswith("broker:"):
            # A rule with the host would allow every request to it.
            what = f"{_plain(destination)}:{port} ({_plain(rule)}, {count} times)"
            left_out.append(f"# {what} is limited by methods and paths: change these, or the requests")
            continue
        entry = _entry(destination, rule)
        if entry is None or (port == 0 and not rule.startswith("dns")):
            if destination:
                left_out.append(
                    f"# {_plain(destination)}:{port} ({_plain(rule)}, {count} times) cannot be allowed by a profile"
                )
            continue
        kept = wanted.setdefault(entry, {"ports": set(), "count": 0, "during": set()})
        # A DNS query contains no port; 443 is the most probable one.
        if not rule.startswith("dns"):
            kept["ports"].add(port)
        kept["count"] += count
        if during:
            kept["during"].add(_plain(during))
    lines = []
    for entry, kept in sorted(wanted.items()):
        ports = ", ".join(str(port) for port in sorted(kept["ports"] or {443}))
        note = f"{kept['count']} times" + (f", during {'; '.join(sorted(kept['during']))}" if kept["during"] else "")
        lines.append(f"    - {{{entry}, ports: [{ports}]}}  # {note}")
    if not lines:
        return "\n".join(["# no denied connection can be allowed by a profile", *sorted(left_out)]) + "\n"
    return "\n".join(["egress:", "  allow:", *lines, *sorted(left_out)]) + "\n"


def _entry(destination: str, rule: str) -> str | None:
    """The destination of the rule in YAML, or None if no profile can allow it."""
    # A query of another type is for a name that is allowed already.
    if rule.endswith(("reserved", "suppressed")) or rule == "dns: type":
        return None
    try:
        address = IPv4Address(destination)
    except ValueError:
        try:
            return f"host: {parse_host(destination.lower())}"
        except ValueError:
            return None
    return None if is_reserved(IPv4Network(address)) else f"cidr: {address}/32"


def _plain(text: str) -> str:
    """Text of the guest for a comment, escaped for one line."""
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
