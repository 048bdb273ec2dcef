"""Firewall rules of other programs that drop what the guards of instances send. Pure: reads the JSON of nft.

Instances are in network namespaces of their own, where no other program has rules. The proxy and the resolver open
their connections on the host, under the rules of the host, as every program does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ktrdr_vm.errors import HostError
from ktrdr_vm.identity import TABLE_PREFIX, InstanceUsers

_Rule = list[dict[str, Any]]


@dataclass(frozen=True)
class Obstacle:
    """A chain that drops by default, and the command that exempts the users of the guards."""

    chain: str
    what: str
    fix: str


def find_obstacles(listing: list[dict[str, Any]], users: InstanceUsers) -> list[Obstacle]:
    """`listing` is the list `nftables` of `nft -j list ruleset`; `users` are those of the instances."""
    rules: dict[tuple[str, str, str], list[_Rule]] = {}
    for entry in listing:
        if "rule" in entry:
            rule = entry["rule"]
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule.get("expr", []))
    found = []
    for chain in (entry["chain"] for entry in listing if "chain" in entry):
        family, table, name = chain["family"], chain["table"], chain["name"]
        if table.startswith(TABLE_PREFIX) or family not in ("ip", "inet") or chain.get("hook") != "output":
            continue
        inside = rules.get((family, table, name), [])
        if _closes(chain, inside) and not any(_names(users, statement) for rule in inside for statement in rule):
            place = f"{family} {table} {name}"
            what = f"{place} drops by default and may drop connections of guards to allowed destinations"
            found.append(Obstacle(place, what, f"nft insert rule {place} meta skuid {users.first}-{users.last} accept"))
    return found


def describe_obstacles(obstacles: list[Obstacle]) -> str:
    """The obstacles in one sentence, for `doctor` and `apply`."""
    return "; ".join(one.what for one in obstacles)


def join_fixes(obstacles: list[Obstacle]) -> str:
    return "; ".join(one.fix for one in obstacles)


def require_passage(listing: list[dict[str, Any]], users: InstanceUsers) -> None:
    """HostError if rules of another program drop the traffic of every instance on this host."""
    obstacles = find_obstacles(listing, users)
    if obstacles:
        raise HostError(describe_obstacles(obstacles), where="nftables", hint=join_fixes(obstacles))


def _closes(chain: dict[str, Any], rules: list[_Rule]) -> bool:
    last = {key for statement in rules[-1] for key in statement} if rules else set()
    # Counters and logs beside a verdict do not narrow it.
    return chain.get("policy") == "drop" or (bool({"drop", "reject"} & last) and "match" not in last)


def _names(users: InstanceUsers, statement: dict[str, Any]) -> bool:
    match = statement.get("match", {})
    return bool(
        match.get("left") == {"meta": {"key": "skuid"}} and match.get("right") == {"range": [users.first, users.last]}
    )
