"""Which of other programs' rules stand in an instance's way, by what nft lists of them."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.host.foreign_rules import find_obstacles

Listing = list[dict[str, Any]]


def chain(hook: str, policy: str = "accept", *rules: list[dict[str, Any]], family: str = "inet", kind: str = "filter") -> Listing:
    place = {"family": family, "table": "other"}
    made: Listing = [{"chain": {**place, "name": hook, "type": kind, "hook": hook, "prio": 0, "policy": policy}}]
    return made + [{"rule": {**place, "chain": hook, "expr": rule}} for rule in rules]


def match(key: str, value: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": value}}


def regular(name: str, *rules: list[dict[str, Any]]) -> Listing:
    """A chain that only a jump leads to, as ufw and firewalld make them."""
    return [{"rule": {"family": "inet", "table": "other", "chain": name, "expr": rule}} for rule in rules]


JUMP = [{"jump": {"target": "zone"}}]
ESTABLISHED = [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}}, {"accept": None}]
LETS_TAPS = [match("iifname", "kv*"), {"accept": None}]
REDIRECT = [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}, {"redirect": {"port": 3128}}]


@pytest.mark.parametrize(
    ("listing", "count"),
    [
        (chain("input"), 0),
        (chain("input", "drop"), 1),
        (chain("input", "drop", ESTABLISHED), 1),
        (chain("input", "drop", LETS_TAPS, ESTABLISHED), 0),
        (chain("input", "accept", ESTABLISHED, [{"counter": {}}, {"reject": {"type": "icmpx"}}]), 1),
        (chain("input", "accept", [match("iifname", "eth0"), {"drop": None}]), 0),
        (chain("input", "drop", JUMP) + regular("zone", LETS_TAPS), 0),
        (chain("input", "drop", [match("iifname", "kv*"), *JUMP]) + regular("zone", [{"accept": None}]), 0),
        (chain("input", "drop", JUMP) + regular("zone", [{"accept": None}]), 1),
        (chain("input", "drop", [match("iifname", "kv*"), *JUMP]) + regular("zone", [match("iifname", "lo"), {"accept": None}]), 1),
        (chain("input", "drop", JUMP) + regular("zone", JUMP), 1),
        (chain("output", "drop"), 1),
        (chain("forward", "drop"), 0),
        (chain("input", "drop", family="ip6"), 0),
        (chain("input", "drop", family="ip"), 1),
        (chain("prerouting", "accept", REDIRECT, kind="nat"), 1),
        (chain("prerouting", "accept", [match("iifname", "eth0"), *REDIRECT], kind="nat"), 0),
        (chain("prerouting", "accept", [{"jump": {"target": "DOCKER"}}], kind="nat"), 0),
        ([{"chain": {"family": "inet", "table": "ktrdr_0123456789", "name": "input", "hook": "input", "policy": "drop"}}], 0),
        ([{"metainfo": {}}, {"chain": {"family": "inet", "table": "other", "name": "regular"}}], 0),
    ],
)
def test_what_stands_in_the_way_is_named_with_a_way_out(listing: Listing, count: int) -> None:
    found = find_obstacles(listing)
    assert len(found) == count
    for one in found:
        assert "other" in one.chain and one.chain in one.what and "kv*" in one.fix


@pytest.mark.parametrize(
    ("listing", "fix"),
    [
        (chain("input", "drop", [{"jump": {"target": "ufw-before-input"}}], family="ip"), "ufw allow in on kv+"),
        (
            [{"chain": {"family": "inet", "table": "firewalld", "name": "in", "hook": "input", "policy": "drop"}}],
            "firewall-cmd --zone=trusted --add-interface=kv+ && firewall-cmd --runtime-to-permanent",
        ),
        (chain("input", "drop"), 'nft insert rule inet other input iifname "kv*" accept'),
    ],
)
def test_the_way_out_is_the_other_programs_own(listing: Listing, fix: str) -> None:
    """One of ours would be gone with its next reload, and firewalld lets nobody else change its table."""
    assert [one.fix for one in find_obstacles(listing)] == [fix]
