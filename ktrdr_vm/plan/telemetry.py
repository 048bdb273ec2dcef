"""Telemetry's part of an instance: what the guest is told, and what the firewall lets the sender dial."""

from __future__ import annotations

from ktrdr_vm.plan.guard_interface import OTLP_PORT
from ktrdr_vm.profile.collector import Collector


def make_variables(gateway: str) -> dict[str, str]:
    """What an OpenTelemetry SDK in the guest reads."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{gateway}:{OTLP_PORT}", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


def render_sender(collector: Collector | None, uid: str) -> str:
    """Chains for the user that dials the collector: that one, and nothing else. Empty where there is none.

    With an address it is that one with its port, wherever it lies. By a name alone, questions to DNS and the port of addresses that
    are not reserved.
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
