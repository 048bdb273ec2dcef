"""The compiled allowlist, the ruleset and the proxy's configuration: deny is the default, whatever stands in a
profile."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.identity import HOST_USERS, parse_instance_id
from ktrdr_vm.plan.egress_policy import EgressPolicy, compile_policy
from ktrdr_vm.plan.facts import Facts, ImageFacts, allocate
from ktrdr_vm.plan.guard_interface import GATEWAY, GUEST
from ktrdr_vm.plan.haproxy import MAX_CONNECTIONS, render_proxy
from ktrdr_vm.plan.nftables_host import render_host_ruleset
from ktrdr_vm.plan.nftables_namespace import render_ruleset
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.egress_rule import EgressRule
from ktrdr_vm.profile.load import build_profile
from ktrdr_vm.profile.reserved import RESERVED, is_reserved

IDENTITY = parse_instance_id("one")
ALLOCATION = allocate(0, genid="g", host_key="k", host_public_key="p", login_public_key="l")


def render(*rules: EgressRule, reserved: tuple[tuple[str, int], ...] = ()) -> str:
    return render_ruleset(
        IDENTITY, "/home", ALLOCATION, rules, tuple((IPv4Address(address), port) for address, port in reserved)
    )


def elements(ruleset: str, name: str) -> list[str]:
    body = ruleset.split(f"set {name} {{", 1)[1].split("}\n", 1)[0]
    return [part.strip() for part in body.split("elements = {", 1)[1].split(",")] if "elements" in body else []


def chain(ruleset: str, name: str) -> list[str]:
    return [
        line.strip()
        for line in ruleset.split(f"chain {name} {{", 1)[1].split("\n    }", 1)[0].splitlines()
        if line.strip()
    ]


# -- compiling ---------------------------------------------------------------------------------------------------------


def test_rules_are_sorted_and_without_doubles() -> None:
    rules = (
        EgressRule(host="b.example", ports=(443, 80)),
        EgressRule(host="a.example", ports=(443,)),
        EgressRule(host="a.example", ports=(443, 22)),
        EgressRule(host="*.w.example", ports=(443, 22)),
        EgressRule(host="a.example", ports=(21,)),
        EgressRule(cidr=IPv4Network("198.51.100.7/32"), ports=(5432,)),
        EgressRule(cidr=IPv4Network("198.51.100.7/32"), ports=(22, 5432)),
    )
    wanted = EgressPolicy(
        http_names=("b.example",),
        tls_names=("a.example", "b.example"),
        tls_suffixes=(".w.example",),
        other_names=(("a.example", (21, 22)),),
        other_suffixes=((".w.example", (22,)),),
        ranges=(("198.51.100.7/32", (22, 5432)),),
    )
    assert compile_policy(rules) == wanted
    assert compile_policy(reversed(rules)) == wanted


def test_no_rule_is_an_empty_policy() -> None:
    assert compile_policy(()) == EgressPolicy()
    assert set(compile_policy(()).name_lists.values()) == {""}


@pytest.mark.parametrize(
    "egress", [{"egress": {"allow": []}}, {"egress": {"allow": None}}, {"egress": {}}, {"egress": None}, {}]
)
def test_an_empty_missing_and_null_allowlist_are_one(egress: dict[str, object]) -> None:
    """Row 24."""
    document = {"version": 1, "name": "n", "image": "i", **egress}
    facts = Facts("tcg", "/e", "m", "/h", ImageFacts("i", "d", "/i"))
    plan = Plan(build_profile(document), facts, IDENTITY, document)
    assert (plan.rules, plan.egress) == ((), EgressPolicy())


def test_name_lists_are_one_name_a_line_and_suffixes_begin_with_a_dot() -> None:
    lists = compile_policy((EgressRule(host="*.w.example"), EgressRule(host="a.example"))).name_lists
    assert lists == {"http.names": "", "http.suffixes": "", "tls.names": "a.example\n", "tls.suffixes": ".w.example\n"}


# -- the ruleset -------------------------------------------------------------------------------------------------------


def test_the_order_of_the_guests_chain() -> None:
    rules = chain(render(), "guest_in")
    place = {
        word: next(number for number, rule in enumerate(rules) if word in rule)
        for word in (
            "nfproto",
            "ether saddr",
            "ip saddr",
            "sport 22",
            "udp dport 53",
            "@exceptions",
            "@granted_exceptions",
            "@granted_lan_names",
            "@reserved",
            "fib daddr",
            "{ 80, 443 }",
            "@ranges",
            "@granted_ranges",
            "@names",
            "@granted_names",
            "established counter name ended reject",
        )
    }
    assert list(place.values()) == sorted(place.values())
    assert rules[-1] == "jump deny"
    assert rules[0].startswith("type filter hook prerouting priority mangle")
    assert not any(
        "established" in rule and rule.endswith("accept") and "sport 22" not in rule and "@kept" not in rule
        for rule in rules
    )


def test_deny_drops_everything_it_counts_and_the_rest() -> None:
    rules = chain(render(), "deny")
    assert all(rule.endswith("drop") for rule in rules)
    assert rules[-1] == "counter name uncounted drop"


def test_every_reserved_range_is_there_whatever_is_allowed() -> None:
    everything = EgressRule(cidr=IPv4Network("0.0.0.0/0"), ports=(22,))
    assert set(elements(render(everything), "reserved")) == {str(network) for network in RESERVED}
    assert elements(render(everything), "ranges") == []


@pytest.mark.parametrize(
    ("reserved", "wanted"), [((), []), ((("192.168.1.1", 80),), []), ((("192.168.1.1", 443),), ["192.168.1.1 . 443"])]
)
def test_a_reserved_address_needs_the_owner_and_the_profile(
    reserved: tuple[tuple[str, int], ...], wanted: list[str]
) -> None:
    rule = EgressRule(cidr=IPv4Network("192.168.1.1/32"), ports=(443,))
    assert elements(render(rule, reserved=reserved), "exceptions") == wanted
    assert elements(render(reserved=reserved), "exceptions") == []


def test_ranges_that_overlap_are_one() -> None:
    rules = [
        EgressRule(cidr=IPv4Network(text), ports=(22,))
        for text in ("198.51.100.0/24", "198.51.100.7/32", "198.51.100.128/25", "203.0.113.1/32")
    ]
    assert elements(render(*rules), "ranges") == ["198.51.100.0/24 . 22", "203.0.113.1/32 . 22"]


networks = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)


@given(
    st.lists(
        st.builds(lambda cidr, port: EgressRule(cidr=cidr, ports=(port,)), networks, st.integers(1, 65535)), max_size=12
    )
)
def test_no_element_of_a_range_is_reserved_and_none_overlap(rules: list[EgressRule]) -> None:
    found: dict[str, list[IPv4Network]] = {}
    for element in elements(render(*rules), "ranges"):
        network, port = element.split(" . ")
        assert not is_reserved(IPv4Network(network))
        found.setdefault(port, []).append(IPv4Network(network))
    for standing in found.values():
        assert not any(one.overlaps(other) for number, one in enumerate(standing) for other in standing[:number])
    for rule in rules:
        if rule.cidr is not None and not is_reserved(rule.cidr):
            assert any(rule.cidr.subnet_of(standing) for standing in found[str(rule.ports[0])])


def test_only_the_tap_of_the_instance_is_judged() -> None:
    for name in ("guest_in", "guest_nat"):
        assert chain(render(), name)[1] == f'iifname != "{IDENTITY.tap}" accept'


def test_ipv6_is_in_no_allow_rule() -> None:
    assert chain(render(), "guest_in")[2] == "meta nfproto != ipv4 counter name not_ipv4 drop"
    # The host's own name servers may have such addresses; they are for the resolver's user alone.
    outside = render_host_ruleset(IDENTITY, "/home", ALLOCATION, ())
    others = outside.replace("ip6 daddr @upstreams6 meta l4proto { tcp, udp } th dport 53 accept", "")
    for text in (render(), others):
        assert "ip6" not in text and "icmp" not in text


@pytest.mark.parametrize(
    ("part", "is_open"),
    [({}, False), ({"mode": "interactive"}, True), ({"workload": {"command": ["agent"]}, "workspace": {}}, True)],
    ids=["sandbox", "interactive", "workload"],
)
def test_the_inbox_is_open_to_whoever_can_ask(part: dict[str, object], is_open: bool) -> None:
    document = {"version": 1, "name": "n", "image": "i", **part}
    facts = Facts("tcg", "/e", "m", "/h", ImageFacts("i", "d", "/i"))
    text = Plan(build_profile(document), facts, IDENTITY, document).render(ALLOCATION)["ruleset.nft"]
    served = next(line for line in chain(text, "guest_in") if line.startswith(f"ip daddr {GATEWAY} tcp dport"))
    assert served == f"ip daddr {GATEWAY} tcp dport {{ 53{', 917' if is_open else ''} }} accept"


# -- the proxy and the slots -------------------------------------------------------------------------------------------


def test_the_proxy_asks_nobody_but_the_guard_and_never_ends_tls() -> None:
    config = render_proxy(IDENTITY, ALLOCATION, "/lists")
    assert [line.split()[2] for line in config.splitlines() if line.strip().startswith("nameserver")] == [
        f"{ALLOCATION.loopback}:53"
    ]
    assert " ssl " not in config and " crt " not in config and "parse-resolv-conf" not in config
    assert "dontlognull" not in config, "a connection without a byte is a decision too"


def test_the_proxy_has_one_cpu_and_so_many_connections() -> None:
    lines = [line.strip() for line in render_proxy(IDENTITY, ALLOCATION, "/lists").splitlines()]
    assert "nbthread 1" in lines and f"maxconn {MAX_CONNECTIONS}" in lines


def test_slots_do_not_meet() -> None:
    seen: set[str] = set()
    for slot in (0, 1, 2, 63, 64, HOST_USERS.slots - 1):
        made = allocate(slot, genid="", host_key="", host_public_key="", login_public_key="")
        users = {made.proxy_uid, made.resolver_uid, made.relay_uid, made.sender_uid, made.inbox_uid}
        assert len(users) == 5 and all(HOST_USERS.first <= int(uid) <= HOST_USERS.last for uid in users)
        assert IPv4Address(made.loopback).is_loopback
        assert not (users | {made.loopback}) & seen
        seen |= users | {made.loopback}
        assert (made.gateway, made.guest) == (GATEWAY, GUEST), "each namespace has the same two"
        assert is_reserved(IPv4Network(f"{made.gateway}/30", strict=False))
