"""Values of every character and of the greatest length, as many as fill several commands to the proxy."""

from __future__ import annotations

import dataclasses
from typing import Any

from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest
from test_egress_broker import HOST, PORT, Provider, provider, trust_lab

from ktrdr_vm.instance.resources.brokered_secret import BrokeredSecret
from ktrdr_vm.profile.model import Secret
from ktrdr_vm.profile.scalars import MAX_HEADER

__all__ = ["provider"]

MANY = 9
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def give(guest: NamespaceGuest, secret: Secret, value: bytes) -> None:
    blueprint = dataclasses.replace(guest.guard.blueprint, read_secret=lambda _: value)
    BrokeredSecret(guest.guard.target, blueprint, secret).create()


def test_many_long_values_arrive_as_they_are(lab: Lab, provider: Provider) -> None:
    """Seen before they were given in parts: from the fourth on, the proxy had none of them and the guard did not know."""
    entry: dict[str, Any] = {"host": HOST, "header": "x-api-key: {{ secret }}", "paths": ["/v1/"]}
    secrets = [
        {"name": f"key{number}", "source": {"env": "KTRDR_KEY"}, "broker": entry | {"base_url_env": f"U{number}"}}
        for number in range(MANY)
    ]
    profile = {"version": 1, "name": "net", "image": "none", "secrets": secrets}
    values = [f"{number}{PRINTABLE}  {'x' * MAX_HEADER}"[: MAX_HEADER - 1] + "!" for number in range(MANY)]
    with NamespaceGuest(lab.home, profile=profile, sabotage=(trust_lab(lab),)) as guest:
        for secret, value in zip(guest.plan.profile.secrets, values, strict=True):
            give(guest, secret, value.encode())
        for number in range(MANY):
            head = f"GET /v1/{number} HTTP/1.1\r\nHost: {guest.gateway}:{PORT + number}\r\nConnection: close\r\n\r\n"
            said = guest.probe("http", address=guest.gateway, port=PORT + number, send=head)
            assert said["status"] == 200, number
        assert [one.values("x-api-key") for one in provider.seen] == [[value] for value in values]
