"""Firewall rules of other programs that drop or redirect traffic that the table of an instance allows. Pure: reads the JSON of nft.

An `accept` in another table opens nothing, because a packet must be accepted by every table. Relevant are rules that drop or redirect
packets of the guest to its guard (input) or connections of the guard (output).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ktrdr_vm.errors import HostError
from ktrdr_vm.identity import TABLE_PREFIX, TAP_PREFIX

_Rule = list[dict[str, Any]]


@dataclass(frozen=True)
class Obstacle:
    """A chain that may drop or redirect traffic of instances, and the command that exempts them."""

    chain: str
    what: str
    fix: str
    blocks: bool = True
    """False if only the packets would show whether it affects instances."""


def find_obstacles(listing: list[dict[str, Any]]) -> list[Obstacle]:
    """`listing` is the list `nftables` of `nft -j list ruleset`."""
    rules: dict[tuple[str, str, str], list[list[dict[str, Any]]]] = {}
    for entry in listing:
        if "rule" in entry:
            rule = entry["rule"]
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule.get("expr", []))
    found = []
    for chain in (entry["chain"] for entry in listing if "chain" in entry):
        family, table, name, hook = chain["family"], chain["table"], chain["name"], chain.get("hook", "")
        if table.startswith(TABLE_PREFIX) or family not in ("ip", "inet"):
            continue
        inside, place = rules.get((family, table, name), []), f"{family} {table} {name}"
        chains = {other: found for (of, at, other), found in rules.items() if (of, at) == (family, table)}
        if hook in ("input", "output") and _closes(chain, inside) and not _lets_taps_pass(inside, chains, hook):
            whose = "connections of guests to their guards" if hook == "input" else "connections of guards to allowed destinations"
            fix = _make_fix(place, table, inside, hook)
            found.append(Obstacle(place, f"{place} drops by default and may drop {whose}", fix))
        if hook == "prerouting" and chain.get("type") == "nat" and any(_redirects_all(rule) for rule in inside):
            what = f"{place} redirects all incoming traffic, possibly before the table of an instance does"
            found.append(Obstacle(place, what, f'exclude iifname "{TAP_PREFIX}*" from it', blocks=False))
    return found


def describe_obstacles(obstacles: list[Obstacle]) -> str:
    """The obstacles in one sentence, for `doctor` and `apply`."""
    return "; ".join(one.what for one in obstacles)


def join_fixes(obstacles: list[Obstacle]) -> str:
    return "; ".join(one.fix for one in obstacles)


def require_passage(listing: list[dict[str, Any]]) -> None:
    """HostError if rules of another program drop the traffic of every instance on this host."""
    blocking = [one for one in find_obstacles(listing) if one.blocks]
    if blocking:
        raise HostError(describe_obstacles(blocking), where="nftables", hint=join_fixes(blocking))


def _make_fix(place: str, table: str, rules: list[_Rule], hook: str) -> str:
    """The command of the program if it is known, so that the rule survives a reload; only firewalld may change its own table."""
    if hook == "output":
        return f'nft insert rule {place} oifname "{TAP_PREFIX}*" accept; accept connections of uid 1900000000 and above too'
    if table == "firewalld":
        return f"firewall-cmd --zone=trusted --add-interface={TAP_PREFIX}+ && firewall-cmd --runtime-to-permanent"
    if any(target.startswith("ufw-") for rule in rules for target in _find_targets(rule)):
        return f"ufw allow in on {TAP_PREFIX}+"
    return f'nft insert rule {place} iifname "{TAP_PREFIX}*" accept'


def _closes(chain: dict[str, Any], rules: list[list[dict[str, Any]]]) -> bool:
    last = rules[-1] if rules else []
    # Counters and logs beside a verdict do not narrow it.
    return chain.get("policy") == "drop" or (bool(last) and {"drop", "reject"} & _keys(last) != set() and "match" not in _keys(last))


def _lets_taps_pass(
    rules: list[_Rule], chains: dict[str, list[_Rule]], hook: str, seen: tuple[str, ...] = (), *, named: bool = False
) -> bool:
    """True if a rule accepts packets from taps, here or in a chain to which it jumps. `named`: only packets of taps reach this chain."""
    for rule in rules:
        here = named or any(_names_taps(statement, "iifname" if hook == "input" else "oifname") for statement in rule)
        if named and "match" in _keys(rule):
            continue
        if here and "accept" in _keys(rule):
            return True
        for target in _find_targets(rule):
            if target not in seen and _lets_taps_pass(chains.get(target, []), chains, hook, (*seen, target), named=here):
                return True
    return False


def _find_targets(rule: _Rule) -> list[str]:
    return [str(statement[verb]["target"]) for statement in rule for verb in ("jump", "goto") if verb in statement]


def _names_taps(statement: dict[str, Any], key: str) -> bool:
    match = statement.get("match", {})
    return match.get("left") == {"meta": {"key": key}} and str(match.get("right", "")).startswith(TAP_PREFIX)


def _redirects_all(rule: list[dict[str, Any]]) -> bool:
    """True if a rule is restricted to other interfaces or to addresses of the host, so that it does not affect guests."""
    asked = str([statement["match"].get("left") for statement in rule if "match" in statement])
    return bool({"dnat", "redirect", "tproxy"} & _keys(rule)) and not any(word in asked for word in ("iif", "fib", "daddr"))


def _keys(rule: list[dict[str, Any]]) -> set[str]:
    return {key for statement in rule for key in statement}
