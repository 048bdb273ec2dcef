"""What is refused in a text of a profile, and which ranges no profile reaches into, by category and by registry."""

from __future__ import annotations

import ipaddress
import unicodedata

import pytest

from ktrdr_vm.profile.reserved import RESERVED, is_reserved
from ktrdr_vm.profile.scalars import parse_plain_text

# Each category of Unicode, with a character of it that is not ASCII where there is one.
SHOWN = {"Lu": "Ä", "Ll": "é", "Lo": "漢", "Nd": "٣", "Po": "¿", "Sm": "±", "So": "©", "Mn": "e\u0301", "Zs": " "}
HIDDEN = {
    "Cc": "\x1b",
    "C1": "\x9b",
    "Cf": "\u202e",
    "soft hyphen": "\xad",
    "Cs": "\ud800",
    "Co": "\ue000",
    "Cn": "\u0378",
    "Zl": "\u2028",
    "Zp": "\u2029",
}


@pytest.mark.parametrize("category", SHOWN)
def test_what_can_be_seen_is_plain_text(category: str) -> None:
    assert parse_plain_text(f"a{SHOWN[category]}b")


@pytest.mark.parametrize("category", HIDDEN)
def test_what_cannot_be_seen_is_refused(category: str) -> None:
    assert unicodedata.category(HIDDEN[category]) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    with pytest.raises(ValueError, match="printable"):
        parse_plain_text(f"a{HIDDEN[category]}b")


DOCUMENTATION = {ipaddress.IPv4Network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")}


def test_every_range_that_the_registry_calls_special_is_reserved() -> None:
    """Of Python's copy of IANA's registry; the documentation ranges are nobody's, and labs use them."""
    special = [*ipaddress._IPv4Constants._private_networks, ipaddress._IPv4Constants._reserved_network]  # type: ignore[attr-defined]
    special += [ipaddress._IPv4Constants._linklocal_network, ipaddress._IPv4Constants._multicast_network]  # type: ignore[attr-defined]
    missing = [
        one for one in special if one not in DOCUMENTATION and not any(one.subnet_of(other) for other in RESERVED)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("cloud", "address"),
    [
        ("Amazon, Google, Azure, OpenStack", "169.254.169.254"), ("Amazon's time", "169.254.169.123"), ("ECS", "169.254.170.2"),
        ("Azure's platform", "168.63.129.16"), ("Alibaba", "100.100.100.200"), ("Oracle", "192.0.0.192"), ("IBM", "161.26.0.10"),
        ("6to4's relay", "192.88.99.1"),
    ],
)  # fmt: skip
def test_what_clouds_serve_to_their_own_machines_is_reserved(cloud: str, address: str) -> None:
    assert is_reserved(ipaddress.IPv4Network(address)), cloud
