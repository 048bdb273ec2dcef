"""Other programs' firewall rules that would take from an instance what its own table gives it. Pure: reads nft's JSON.

An `accept` of another table opens nothing, since a packet passes only where every table lets it. What matters is what drops or redirects:
the guest's packets to its guard (input), the guard's own connections (output), and packets that another redirects first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ktrdr_vm.errors import HostError
from ktrdr_vm.identity import TABLE_PREFIX, TAP_PREFIX

_Rule = list[dict[str, Any]]


@dataclass(frozen=True)
class Obstacle:
    """A chain that stands in the way, and what lets instances pass."""

    chain: str
    what: str
    fix: str
    blocks: bool = True
    """False for what may be in the way, and only a look at the packets would tell."""


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
            whose = "guests to their guards" if hook == "input" else "guards to what is allowed"
            fix = _make_fix(place, table, inside, hook)
            found.append(Obstacle(place, f"{place} drops what no rule of it accepts: it may stop {whose}", fix))
        if hook == "prerouting" and chain.get("type") == "nat" and any(_redirects_all(rule) for rule in inside):
            what = f"{place} redirects whatever arrives, perhaps before an instance's own table does"
            found.append(Obstacle(place, what, f'let it except iifname "{TAP_PREFIX}*"', blocks=False))
    return found


def describe_obstacles(obstacles: list[Obstacle]) -> str:
    """In one sentence; `doctor` and `apply` say the same."""
    return "; ".join(one.what for one in obstacles)


def join_fixes(obstacles: list[Obstacle]) -> str:
    return "; ".join(one.fix for one in obstacles)


def require_passage(listing: list[dict[str, Any]]) -> None:
    """HostError where another program's rules close the way of every instance on this host."""
    blocking = [one for one in find_obstacles(listing) if one.blocks]
    if blocking:
        raise HostError(describe_obstacles(blocking), where="nftables", hint=join_fixes(blocking))


def _make_fix(place: str, table: str, rules: list[_Rule], hook: str) -> str:
    """The program's own way where it is known, so that it outlives a reload; firewalld's table may be changed by nobody else."""
    if hook == "output":
        return f'nft insert rule {place} oifname "{TAP_PREFIX}*" accept; and let the guards\' users (1900000000 and up) dial out'
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
    """True when a rule accepts what comes from taps, here or in a chain that is jumped to. `named`: only taps come here."""
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
    """One that asks for an interface or for the host's own addresses leaves guests alone."""
    asked = str([statement["match"].get("left") for statement in rule if "match" in statement])
    return bool({"dnat", "redirect", "tproxy"} & _keys(rule)) and not any(word in asked for word in ("iif", "fib", "daddr"))


def _keys(rule: list[dict[str, Any]]) -> set[str]:
    return {key for statement in rule for key in statement}
