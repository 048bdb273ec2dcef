"""The proxy's log as fields of the ledger. The format is rendered in `plan/haproxy`."""

from __future__ import annotations

import contextlib
import json
import os
from ipaddress import IPv4Address
from typing import Any

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.grants.enforcer import Granting
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.errors import KtrdrError

_LINE_LIMIT = 16 * 1024
_PIECE = 1 << 18
_KINDS = {"tls": "tls", "http": "http", "other": "tcp"}


def parse_proxy_line(line: bytes) -> dict[str, Any] | None:
    """One line of the proxy's log as fields of the ledger, or None for any other line: HAProxy's own notices are in the
    same stream."""
    try:
        entry = json.loads(line)
        if entry["f"] == "broker":
            return _parse_broker(entry)
        kind = _KINDS[entry["f"]]
        name = "" if entry["n"] == "-" else str(entry["n"])[:254]
        # Bytes that are not a request end before a rule has set a verdict.
        verdict = "request" if entry["v"] == "-" else str(entry["v"])
        fields: dict[str, Any] = {
            "kind": kind,
            "verdict": "allow" if verdict in ("allow", "observe") else "deny",
            "name": name,
            "address": str(entry["a"]),
            "port": int(entry["p"]),
            "rule": {"allow": "name" if name else "address"}.get(verdict, verdict[:20]),
            "bytes_out": int(entry["u"]),
            "bytes_in": int(entry["d"]),
            "ms": int(entry["m"]),
            "grant_slot": "" if entry.get("g", "-") == "-" else str(entry["g"])[:20],
        }
        if kind == "tcp":
            # The sets are searched for it.
            IPv4Address(fields["address"])
        if kind == "http":
            fields |= {"method": str(entry["w"])[:20], "status": max(0, int(entry["s"]))}
        if fields["verdict"] == "allow" and entry["t"][:1] == "S":
            fields["message"] = "the destination did not answer"
        return fields
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        # The proxy reads the guest's bytes, so the line may be any.
        return None


def _parse_broker(entry: dict[str, Any]) -> dict[str, Any]:
    """One request with a credential that the guest does not have. The path is without the query."""
    verdict = "request" if entry["v"] == "-" else str(entry["v"])[:20]
    allowed = verdict == "allow"
    fields: dict[str, Any] = {
        "kind": "broker",
        "verdict": "allow" if allowed else "deny",
        "name": str(entry["n"]),
        "address": "" if entry["a"] == "-" else str(entry["a"]),
        "port": int(entry["p"]),
        "rule": str(entry["k"]),
        "method": str(entry["w"])[:20],
        "path": "" if entry["q"] == "-" else str(entry["q"]),
        "status": max(0, int(entry["s"])),
        "bytes_out": int(entry["u"]),
        "bytes_in": int(entry["d"]),
        "ms": int(entry["m"]),
        "grant_slot": "",
    }
    if not allowed:
        fields["message"] = f"refused by {verdict}"
    elif entry["t"][:1] == "S":
        fields["message"] = "the destination did not answer, or with a certificate that is not its own"
    return fields


class ProxyLog:
    """Reads the lines of the proxy and writes them to the ledger, with the name of each address and the grant that
    allowed it."""

    def __init__(self, ledger: Ledger, sets: AllowSets, granting: Granting, proxy: ProxyControl) -> None:
        self._ledger = ledger
        self._sets = sets
        self._granting = granting
        self._proxy = proxy
        self._rest = b""
        self._lost = 0
        self._news = False

    def proxy_starts(self) -> None:
        """Begin with the log of another process, whose first line does not continue the last one of the earlier."""
        self._count_unreadable(self._rest)
        self._rest, self._lost = b"", 0

    def read(self, descriptor: int) -> bool:
        """Read the lines that are available, at most 256 KiB at once. True if there were any."""
        try:
            data = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_LIMIT:
            self._count_unreadable(self._rest)
            self._rest = b""
        for line in lines:
            self._record(line)
        return bool(data)

    def _record(self, line: bytes) -> None:
        fields = parse_proxy_line(line)
        if fields is None:
            self._count_unreadable(line)
            return
        self._news = True
        if not fields["name"]:
            fields["name"] = self._sets.owners.get(fields["address"], "")
        grant = self._granting.find_grant(fields.pop("grant_slot"))
        if fields["kind"] == "tcp" and not grant:
            grant = self._sets.find_past_grant(fields["address"], fields["port"])
        if grant and fields["verdict"] == "allow":
            fields["rule"] = f"grant:{grant}"
        elif (
            fields["kind"] == "tcp"
            and self._sets.rules.policy.observe
            and not self._sets.is_open(fields["address"], fields["port"])
        ):
            fields["rule"] = "observe"
        self._ledger.write(fields.pop("kind"), fields.pop("verdict"), **fields)

    def _count_unreadable(self, line: bytes) -> None:
        """Count a line of this log that cannot be parsed, because it stands for a decision. HAProxy's own notices do
        not begin with a brace."""
        if line.startswith(b"{"):
            self._ledger.write(
                "tcp", "note", rule="suppressed", count=1, message="a line of the proxy's log that cannot be read"
            )

    def count_lost(self) -> None:
        """Write the number of lines that the proxy has dropped: under a flood it drops and counts lines, and does not
        wait for the guard."""
        if not self._news:
            return
        self._news = False
        with contextlib.suppress(KtrdrError):
            lost = self._proxy.count_lost_lines()
            if lost > self._lost:
                self._ledger.write("tcp", "note", rule="suppressed", count=lost - self._lost)
            self._lost = lost
