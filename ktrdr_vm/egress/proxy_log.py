"""The proxy's log as fields of the ledger. The format is rendered in `plan/haproxy`."""

from __future__ import annotations

import json
from typing import Any

_KINDS = {"tls": "tls", "http": "http", "other": "tcp"}


def parse_proxy_line(line: bytes) -> dict[str, Any] | None:
    """One line of the proxy's log as ledger fields, or None when it is not one: HAProxy's own notices share the stream."""
    try:
        entry = json.loads(line)
        kind = _KINDS[entry["f"]]
        name = "" if entry["n"] == "-" else str(entry["n"])[:253]
        # What is no request at all ends before any rule has set a verdict.
        verdict = "request" if entry["v"] == "-" else str(entry["v"])
        fields: dict[str, Any] = {
            "kind": kind,
            "verdict": "allow" if verdict == "allow" else "deny",
            "name": name,
            "address": str(entry["a"]),
            "port": int(entry["p"]),
            "rule": {"allow": "name" if name else "address"}.get(verdict, verdict[:20]),
            "bytes_out": int(entry["u"]),
            "bytes_in": int(entry["d"]),
            "ms": int(entry["m"]),
            "room": "" if entry.get("g", "-") == "-" else str(entry["g"])[:20],
        }
        if kind == "http":
            fields |= {"method": str(entry["w"])[:20], "status": int(entry["s"])}
        if fields["verdict"] == "allow" and entry["t"][:1] == "S":
            fields["message"] = "the destination did not answer"
        return fields
    except (ValueError, KeyError, TypeError):
        return None
