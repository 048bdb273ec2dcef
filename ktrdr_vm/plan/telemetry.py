"""Telemetry in the documents of an instance: variables of the guest, and firewall rules of the sender."""

from __future__ import annotations

from ktrdr_vm.plan.guard_interface import OTLP_PORT
from ktrdr_vm.profile.collector import Collector


def make_variables(gateway: str) -> dict[str, str]:
    """The variables for OpenTelemetry SDKs in the guest."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{gateway}:{OTLP_PORT}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }


def render_sender(collector: Collector | None, uid: str) -> str:
    """Chains for the user of the sender, which may connect to the collector only. Empty without a collector.

    With an address, only that address and port, also in a reserved range. With a name, DNS and the port of all
    addresses that are not reserved.
    """
    if collector is None:
        return ""
    if collector.address:
        allowed = f"        ip daddr {collector.address} tcp dport {collector.port} accept\n"
    else:
        allowed = f"""\
        meta l4proto {{ tcp, udp }} th dport 53 accept
        meta nfproto != ipv4 counter name sender_strayed drop
        ip daddr @reserved counter name sender_strayed drop
        fib daddr type {{ local, broadcast, anycast, multicast }} counter name sender_strayed drop
        tcp dport {collector.port} accept
"""
    return f"""
    counter sender_strayed {{ }}

    # The sender of telemetry may connect to the owner's collector only.
    chain sender_out {{
        type filter hook output priority filter; policy accept;
        meta skuid {uid} jump sender_dials
    }}

    chain sender_dials {{
{allowed}        counter name sender_strayed drop
    }}
"""
