"""Which rules of other programs drop what a guard sends, by what nft lists of them."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.host.foreign_rules import find_obstacles
from ktrdr_vm.identity import HOST_USERS, WORLD_USERS

Listing = list[dict[str, Any]]


def chain(
    hook: str, policy: str = "accept", *rules: list[dict[str, Any]], family: str = "inet", kind: str = "filter"
) -> Listing:
    place = {"family": family, "table": "other"}
    made: Listing = [{"chain": {**place, "name": hook, "type": kind, "hook": hook, "prio": 0, "policy": policy}}]
    return made + [{"rule": {**place, "chain": hook, "expr": rule}} for rule in rules]


def match(key: str, value: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": value}}


ESTABLISHED: Listing = [
    {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}},
    {"accept": None},
]
USERS: Listing = [match("skuid", {"range": [HOST_USERS.first, HOST_USERS.last]}), {"accept": None}]


@pytest.mark.parametrize(
    ("listing", "count"),
    [
        (chain("output"), 0),
        (chain("output", "drop"), 1),
        (chain("output", "drop", ESTABLISHED), 1),
        (chain("output", "drop", USERS, ESTABLISHED), 0),
        (chain("output", "drop", [match("skuid", 0), {"accept": None}]), 1),
        (chain("output", "accept", ESTABLISHED, [{"counter": {}}, {"reject": {"type": "icmpx"}}]), 1),
        (chain("output", "accept", [match("oifname", "eth0"), {"drop": None}]), 0),
        (chain("output", "drop", family="ip6"), 0),
        (chain("output", "drop", family="ip"), 1),
        # No packet of a guest meets these: it is in a namespace of its own.
        (chain("input", "drop"), 0),
        (chain("forward", "drop"), 0),
        (chain("prerouting", "drop"), 0),
        (
            [
                {
                    "chain": {
                        "family": "inet",
                        "table": "ktrdr_0123456789",
                        "name": "output",
                        "hook": "output",
                        "policy": "drop",
                    }
                }
            ],
            0,
        ),
        ([{"metainfo": {}}, {"chain": {"family": "inet", "table": "other", "name": "regular"}}], 0),
    ],
)
def test_what_stands_in_the_way_is_named_with_a_way_out(listing: Listing, count: int) -> None:
    found = find_obstacles(listing, HOST_USERS)
    assert len(found) == count
    for one in found:
        assert "other" in one.chain and one.chain in one.what
        assert one.fix == f"nft insert rule {one.chain} meta skuid {HOST_USERS.first}-{HOST_USERS.last} accept"


def test_in_a_world_the_users_are_those_of_the_world() -> None:
    """Seen in one: the rule that was advised named users that do not exist there."""
    [obstacle] = find_obstacles(chain("output", "drop", USERS), WORLD_USERS)
    assert f"skuid {WORLD_USERS.first}-{WORLD_USERS.last} accept" in obstacle.fix
    named: Listing = [match("skuid", {"range": [WORLD_USERS.first, WORLD_USERS.last]}), {"accept": None}]
    assert find_obstacles(chain("output", "drop", named), WORLD_USERS) == []
