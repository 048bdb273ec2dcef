"""The resolver's decisions, with an upstream, a set and a clock that are fakes of the same interfaces."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.egress.allow_sets import GRACE, MAX_LIFE, MIN_LIFE
from ktrdr_vm.egress.resolver import decisions as module
from ktrdr_vm.egress.resolver.decisions import CACHED, KEEP_FRESH, PROXY_RATE, RATE, REPLIES, Resolver, flatten
from ktrdr_vm.egress.resolver.upstream import HESITATION, UPSTREAM_TIMEOUT, ask_upstream
from ktrdr_vm.egress.rules import Rules
from ktrdr_vm.plan.egress_policy import compile_policy
from ktrdr_vm.profile.egress_rule import EgressRule

ALLOW = (
    EgressRule(host="allowed.example", ports=(80, 443)),
    EgressRule(host="git.example", ports=(22,)),
    EgressRule(host="*.wild.example", ports=(443,)),
)


@dataclass
class World:
    """An upstream that answers from `zone`, a set that remembers when each element ends, a ledger, a clock."""

    zone: dict[str, list[str]] = field(default_factory=dict)
    ttl: int = 60
    down: bool = False
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    now: float = 1000.0
    asked: list[str] = field(default_factory=list)
    ends: dict[tuple[str, str], float] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def upstream(self, name: str) -> dns.message.Message:
        self.asked.append(name)
        if self.down:
            raise dns.exception.Timeout
        reply = dns.message.make_response(dns.message.make_query(name, "A"))
        reply.set_rcode(self.rcode)
        for record in self.zone.get(name, []):
            owner, kind, value = record.split()
            reply.answer.append(dns.rrset.from_text(f"{owner}.", self.ttl, "IN", kind, value))
        return dns.message.from_wire(reply.to_wire())

    async def allow(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        for address in addresses:
            self.ends[name, address] = self.now + min(max(ttl, MIN_LIFE), MAX_LIFE) + GRACE
        return addresses

    def note(self, kind: str, verdict: str, **fields: Any) -> None:
        self.lines.append({"kind": kind, "verdict": verdict, **fields})

    def resolver(self, *rules: EgressRule, exceptions: tuple[tuple[str, int], ...] = ()) -> Resolver:
        made = Rules(
            compile_policy(rules or ALLOW), frozenset((IPv4Address(address), port) for address, port in exceptions)
        )
        return Resolver(made, self.upstream, self.allow, self.note, lambda: self.now)


def ask(resolver: Resolver, name: str, kind: str = "A") -> dns.message.Message:
    wire = asyncio.run(resolver.answer(dns.message.make_query(name, kind).to_wire()))
    assert wire is not None
    return dns.message.from_wire(wire)


@pytest.mark.parametrize("label", [rb"x.wild", rb"secret.in.a.label.wild", rb"x\.wild", b"\0.wild", b"\xff"])
def test_a_dot_inside_a_label_makes_no_name_beneath_a_wildcard(label: bytes) -> None:
    """`x\\.wild.example` is a name directly beneath `example`, and its question would go to that zone's servers."""
    world = World()
    name = dns.name.Name([label, b"wild", b"example", b""] if b"wild" not in label else [label, b"example", b""])
    reply = ask(world.resolver(), name.to_text())
    assert reply.rcode() == dns.rcode.NXDOMAIN and world.asked == []


def addresses(reply: dns.message.Message) -> list[str]:
    return [record.address for rrset in reply.answer for record in rrset if rrset.rdtype == dns.rdatatype.A]


def test_an_allowed_name_is_in_the_set_before_it_is_answered() -> None:
    world = World({"git.example": ["git.example A 198.51.100.22"]})
    seen: list[bool] = []
    real = world.allow

    async def allow(name: str, found: list[str], ttl: int) -> list[str]:
        seen.append(True)
        return await real(name, found, ttl)

    world.allow = allow  # type: ignore[method-assign, assignment]
    assert addresses(ask(world.resolver(), "git.example")) == ["198.51.100.22"]
    assert seen == [True]
    assert world.lines == [
        {
            "kind": "dns",
            "verdict": "allow",
            "name": "git.example",
            "addresses": ["198.51.100.22"],
            "ttl": 60,
            "rule": "name",
        }
    ]


@pytest.mark.parametrize(
    "name", ["evil.example", "x.allowed.example", "allowed.example.evil.example", "wild.example", "xwild.example", "."]
)
@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "ANY", "SOA"])
def test_a_name_that_is_not_allowed_does_not_exist_and_nobody_is_asked(name: str, kind: str) -> None:
    world = World()
    reply = ask(world.resolver(), name, kind)
    assert (reply.rcode(), reply.answer, world.asked) == (dns.rcode.NXDOMAIN, [], [])
    assert [(line["verdict"], line["rule"]) for line in world.lines] == [("deny", "name")]


def test_names_are_compared_without_case_and_below_a_suffix() -> None:
    world = World(
        {"allowed.example": ["allowed.example A 198.51.100.1"], "a.b.wild.example": ["a.b.wild.example A 198.51.100.2"]}
    )
    assert addresses(ask(world.resolver(), "ALLOWED.Example.")) == ["198.51.100.1"]
    assert addresses(ask(world.resolver(), "a.b.wild.example")) == ["198.51.100.2"]
    assert world.asked == ["allowed.example", "a.b.wild.example"], "nothing of the letters of the guest goes on"


@pytest.mark.parametrize("kind", ["AAAA", "TXT", "MX", "NULL", "HTTPS", "SVCB", "CNAME", "ANY"])
def test_nothing_but_addresses_is_asked_for(kind: str) -> None:
    world = World({"allowed.example": ["allowed.example A 198.51.100.1"]})
    reply = ask(world.resolver(), "allowed.example", kind)
    assert (reply.rcode(), reply.answer, world.asked) == (dns.rcode.NOERROR, [], [])


@pytest.mark.parametrize(
    "address",
    "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 127.0.0.1 169.254.169.254 0.0.0.0 0.1.2.3 "
    "192.0.0.1 198.18.0.1 198.19.255.255 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255".split(),
)
def test_a_reserved_answer_is_refused_and_the_rest_kept(address: str) -> None:
    world = World({"allowed.example": [f"allowed.example A {address}", "allowed.example A 198.51.100.1"]})
    assert addresses(ask(world.resolver(), "allowed.example")) == ["198.51.100.1"]
    assert set(world.ends) == {("allowed.example", "198.51.100.1")}
    assert {"verdict": "deny", "address": address, "rule": "reserved"}.items() <= world.lines[0].items()


@pytest.mark.parametrize(
    "address",
    ["172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "198.17.255.255", "198.20.0.0", "192.0.2.1"],
)
def test_what_lies_beside_a_reserved_range_is_usable(address: str) -> None:
    world = World({"allowed.example": [f"allowed.example A {address}"]})
    assert addresses(ask(world.resolver(), "allowed.example")) == [address]


def test_the_owners_exception_must_name_every_port_of_the_name() -> None:
    world = World({"allowed.example": ["allowed.example A 192.168.1.1"]})
    assert addresses(ask(world.resolver(exceptions=(("192.168.1.1", 80),)), "allowed.example")) == []
    both = (("192.168.1.1", 80), ("192.168.1.1", 443))
    assert addresses(ask(world.resolver(exceptions=both), "allowed.example")) == ["192.168.1.1"]


def test_an_address_of_etc_hosts_is_judged_like_any() -> None:
    world = World()
    resolver = world.resolver()
    resolver._upstream = ask_upstream(list, find_addresses=lambda _: ["192.168.1.1", "198.51.100.1"])
    assert addresses(ask(resolver, "allowed.example")) == ["198.51.100.1"]
    assert [line["address"] for line in world.lines if line["rule"] == "reserved"] == ["192.168.1.1"]


def test_an_alias_is_flattened_under_the_name_that_was_asked_for() -> None:
    world = World(
        {
            "allowed.example": [
                "allowed.example CNAME cdn.example.",
                "cdn.example CNAME edge.example.",
                "edge.example A 198.51.100.9",
            ]
        }
    )
    reply = ask(world.resolver(), "allowed.example")
    assert [(rrset.name.to_text(), rrset.rdtype) for rrset in reply.answer] == [("allowed.example.", dns.rdatatype.A)]
    assert set(world.ends) == {("allowed.example", "198.51.100.9")}
    assert ask(world.resolver(), "edge.example").rcode() == dns.rcode.NXDOMAIN


def test_answers_for_other_names_are_ignored_and_loops_end() -> None:
    world = World({"allowed.example": ["evil.example A 198.51.100.66"]})
    assert addresses(ask(world.resolver(), "allowed.example")) == []
    loop = dns.message.make_response(dns.message.make_query("a.example", "A"))
    loop.answer = [
        dns.rrset.from_text("a.example.", 60, "IN", "CNAME", "b.example."),
        dns.rrset.from_text("b.example.", 60, "IN", "CNAME", "a.example."),
    ]
    assert flatten(loop, "a.example") == ([], 30)


def test_an_answer_is_cached_for_its_time_and_counts_down() -> None:
    world = World({"allowed.example": ["allowed.example A 198.51.100.1"]}, ttl=60)
    resolver = world.resolver()
    assert ask(resolver, "allowed.example").answer[0].ttl == 60
    world.now += 40
    assert ask(resolver, "allowed.example").answer[0].ttl == 20
    assert len(world.asked) == 1
    world.now += 21
    ask(resolver, "allowed.example")
    assert len(world.asked) == 2


def test_an_error_that_nobody_expected_of_the_library_is_an_answer_and_a_line() -> None:
    """The guest waited for its own limit, and the ledger had no line."""
    world = World()
    resolver = world.resolver()

    async def broken(_name: str) -> dns.message.Message:
        raise TypeError("udp_with_fallback() got an unexpected keyword argument")

    resolver._upstream = broken
    assert ask(resolver, "allowed.example").rcode() == dns.rcode.SERVFAIL
    assert [(line["rule"], line["message"]) for line in world.lines] == [("upstream", "no answer: TypeError")]


def test_an_upstream_that_fails_is_a_failure_and_not_an_absence() -> None:
    world = World(down=True)
    assert ask(world.resolver(), "allowed.example").rcode() == dns.rcode.SERVFAIL
    assert world.lines[0]["rule"] == "upstream"
    refused = World(rcode=dns.rcode.REFUSED)
    assert ask(refused.resolver(), "allowed.example").rcode() == dns.rcode.SERVFAIL


def test_questions_of_a_kind_that_nobody_asks() -> None:
    resolver = World().resolver()

    def rcode(message: dns.message.Message) -> dns.rcode.Rcode:
        wire = asyncio.run(resolver.answer(message.to_wire()))
        assert wire is not None
        return dns.message.from_wire(wire).rcode()

    chaos = dns.message.make_query("version.bind", "TXT", "CH")
    assert rcode(chaos) == dns.rcode.REFUSED
    update = dns.message.make_query("allowed.example", "A")
    update.set_opcode(dns.opcode.STATUS)
    assert rcode(update) == dns.rcode.NOTIMP
    two = dns.message.make_query("allowed.example", "A")
    two.question.append(two.question[0])
    reply = asyncio.run(
        resolver.answer(dns.message.make_response(dns.message.make_query("allowed.example", "A")).to_wire())
    )
    assert reply is None


@given(st.binary(max_size=512))
def test_any_bytes_are_survived(wire: bytes) -> None:
    world = World()
    asyncio.run(world.resolver().answer(wire))
    assert world.asked == []


def test_the_token_bucket_bounds_and_refills() -> None:
    world = World()
    resolver = world.resolver()
    assert sum(resolver.admit() for _ in range(RATE * 3)) == RATE
    world.now += 0.5
    assert sum(resolver.admit() for _ in range(RATE * 3)) == RATE // 2
    world.now += 1000
    assert sum(resolver.admit() for _ in range(RATE * 3)) == RATE


def test_what_the_proxy_asks_for_the_guest_has_a_share_of_its_own() -> None:
    world = World()
    resolver = world.resolver()
    assert sum(resolver.admit() for _ in range(RATE * 3)) == RATE
    assert sum(resolver.admit(own=True) for _ in range(PROXY_RATE * 3)) == PROXY_RATE
    assert not resolver.admit()


def question(name: str, kind: str = "A", number: int = 1) -> bytes:
    query = dns.message.make_query(name, kind)
    query.id = number
    return query.to_wire()


def test_the_same_bytes_get_the_reply_that_would_be_made_anew() -> None:
    world = World({"allowed.example": ["allowed.example A 198.51.100.10"]})
    resolver = world.resolver()
    assert resolver.recall(question("allowed.example")) is None
    asyncio.run(resolver.answer(question("allowed.example")))
    for number in (2, 65535):
        again = question("allowed.example", number=number)
        assert resolver.recall(again) == asyncio.run(resolver.answer(again))
    assert world.asked == ["allowed.example"]
    # Other bytes are another question, though it is the same name.
    assert (
        resolver.recall(question("Allowed.example")) is None
        and resolver.recall(question("allowed.example", "AAAA")) is None
    )


def test_a_kept_reply_counts_down_and_ends_with_its_answer() -> None:
    """Kept for as long as it would be the same. Without the comparison of the TTL the first assertion fails, without
    the end the last."""
    world = World({"allowed.example": ["allowed.example A 198.51.100.10"]}, ttl=2)
    resolver = world.resolver()
    wire = question("allowed.example")
    asyncio.run(resolver.answer(wire))
    world.now += 1
    assert resolver.recall(wire) is None
    said = dns.message.from_wire(asyncio.run(resolver.answer(wire)) or b"")
    assert said.answer[0].ttl == 1 and resolver.recall(wire) is not None
    world.zone = {"allowed.example": ["allowed.example A 198.51.100.99"]}
    world.now += 1
    assert resolver.recall(wire) is None
    assert addresses(ask(resolver, "allowed.example")) == ["198.51.100.99"]


def test_no_reply_outlives_the_grant_that_it_was_given_for() -> None:
    """Fails when neither the replies nor the answers that they were made from go with the rules."""
    world = World({"granted.example": ["granted.example A 198.51.100.91"]})
    resolver = world.resolver()
    resolver.set_rules(
        Rules(compile_policy(ALLOW), grants=(("g", compile_policy([EgressRule(host="granted.example")])),))
    )
    wire = question("granted.example")
    asyncio.run(resolver.answer(wire))
    assert resolver.recall(wire) is not None
    resolver.set_rules(Rules(compile_policy(ALLOW)))
    assert resolver.recall(wire) is None
    assert ask(resolver, "granted.example").rcode() == dns.rcode.NXDOMAIN and resolver.recall(wire) is None


def test_what_is_refused_has_no_kept_reply_and_those_that_are_kept_are_bounded() -> None:
    """A refusal has its line in the ledger each time. The bytes behind a number are the guest's to choose: each case is
    another question."""
    world = World({"allowed.example": ["allowed.example A 198.51.100.10"]})
    resolver = world.resolver()
    asyncio.run(resolver.answer(question("evil.example")))
    assert resolver.recall(question("evil.example")) is None
    for number in range(REPLIES * 2):
        cased = "".join(one.upper() if number >> place & 1 else one for place, one in enumerate("allowed.exa")) + "mple"
        asyncio.run(resolver.answer(question(cased)))
    assert len(resolver._replies) == REPLIES
    long = dns.message.make_query("allowed.example", "A", use_edns=0, pad=module.LONGEST_QUESTION + 128).to_wire()
    asyncio.run(resolver.answer(long))
    assert len(long) > module.LONGEST_QUESTION and resolver.recall(long) is None


def test_the_cache_is_bounded() -> None:
    world = World()
    resolver = world.resolver()
    for number in range(CACHED + 50):
        name = f"n{number}.wild.example"
        world.zone[name] = [f"{name} A 198.51.100.1"]
        ask(resolver, name)
    assert len(resolver._cache) <= CACHED
    assert len(resolver._asked) <= CACHED


def test_two_questions_at_once_are_one_upstream() -> None:
    world = World({"allowed.example": ["allowed.example A 198.51.100.1"]})
    resolver = world.resolver()

    async def both() -> None:
        await asyncio.gather(*(resolver.resolve("allowed.example") for _ in range(10)))

    asyncio.run(both())
    assert world.asked == ["allowed.example"]


@pytest.mark.parametrize("ttl", [1, 5, 60, 300, 3600, 86400])
def test_a_day_of_refreshing_leaves_no_gap_and_grows_nothing(ttl: int) -> None:
    """A flow that lives all day over a name with another port: its element never ends while the name is fresh."""
    world = World({"git.example": ["git.example A 198.51.100.22"]}, ttl=ttl)
    resolver = world.resolver()
    began = world.now

    async def day() -> None:
        await resolver.resolve("git.example")
        while world.now < began + KEEP_FRESH - 1:
            world.now += 10
            await resolver.refresh()
            assert world.ends["git.example", "198.51.100.22"] > world.now, f"a gap after {world.now - began:g} s"

    asyncio.run(day())
    assert len(resolver._cache) == len(resolver._asked) == 1
    assert len(world.asked) <= KEEP_FRESH / MIN_LIFE + 2
    world.now = began + KEEP_FRESH + 1
    asyncio.run(resolver.refresh())
    assert resolver._asked == {}


def test_names_for_80_and_443_alone_are_not_refreshed() -> None:
    world = World({"allowed.example": ["allowed.example A 198.51.100.1"]}, ttl=60)
    resolver = world.resolver()
    ask(resolver, "allowed.example")
    world.now += 600
    asyncio.run(resolver.refresh())
    assert world.asked == ["allowed.example"]


def test_while_upstream_is_down_the_last_addresses_stay_open() -> None:
    world = World({"git.example": ["git.example A 198.51.100.22"]}, ttl=60)
    resolver = world.resolver()
    ask(resolver, "git.example")
    world.down = True
    for _ in range(360):
        world.now += 10
        asyncio.run(resolver.refresh())
        assert world.ends["git.example", "198.51.100.22"] > world.now


def test_a_guard_that_does_not_answer_in_time_ends_no_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({"git.example": ["git.example A 198.51.100.22"]}, ttl=60)
    resolver = world.resolver()
    ask(resolver, "git.example")

    async def busy(*_: object) -> list[str]:
        raise TimeoutError

    monkeypatch.setattr(resolver, "_allow", busy)
    world.down = True
    world.now += 3600
    asyncio.run(resolver.refresh())
    monkeypatch.setattr(resolver, "_allow", world.allow)
    world.now += module.RETRY
    asyncio.run(resolver.refresh())
    assert world.ends["git.example", "198.51.100.22"] > world.now


def test_while_upstream_is_down_the_answer_is_a_failure_at_once() -> None:
    """The first question waits for the upstream's time limit; those in the next moment do not even ask."""
    world = World({"allowed.example": ["allowed.example A 198.51.100.1"]}, down=True)
    resolver = world.resolver()
    world.now += module.SILENCE + 1
    assert ask(resolver, "a.wild.example").rcode() == dns.rcode.SERVFAIL
    for number in range(20):
        assert ask(resolver, f"n{number}.wild.example").rcode() == dns.rcode.SERVFAIL
    assert world.asked == ["a.wild.example"]
    world.down = False
    world.now += module.DOWN
    assert addresses(ask(resolver, "allowed.example")) == ["198.51.100.1"]


def test_one_name_that_fails_does_not_take_the_others_along() -> None:
    world = World({"allowed.example": ["allowed.example A 198.51.100.1"]})
    resolver = world.resolver()
    world.now += module.SILENCE + 1
    assert addresses(ask(resolver, "allowed.example")) == ["198.51.100.1"]
    world.down = True
    assert ask(resolver, "broken.wild.example").rcode() == dns.rcode.SERVFAIL
    world.down = False
    world.zone["b.wild.example"] = ["b.wild.example A 198.51.100.2"]
    assert addresses(ask(resolver, "b.wild.example")) == ["198.51.100.2"]


def test_a_busy_day_leaves_no_gap_and_grows_nothing() -> None:
    """Every minute: names with other ports, names that are denied, new names below a suffix, grants that come and
    go."""
    world = World({"git.example": ["git.example A 198.51.100.22"]}, ttl=60)
    base = compile_policy(ALLOW)
    granted = compile_policy([EgressRule(host="granted.example", ports=(9100,))])
    world.zone["granted.example"] = ["granted.example A 198.51.100.91"]
    resolver = world.resolver()
    began, step = world.now, 0

    async def day() -> None:
        nonlocal step
        await resolver.resolve("git.example")
        while world.now < began + KEEP_FRESH:
            world.now += 60
            step += 1
            name = f"n{step}.wild.example"
            world.zone = {**dict(list(world.zone.items())[:2]), name: [f"{name} A 198.51.100.3"]}
            world.lines.clear()
            world.down = step % 50 in (0, 1, 2)
            for wanted in ("git.example", "evil.example", name):
                await resolver.answer(dns.message.make_query(wanted, "A").to_wire())
            if step % 120 == 0:
                await resolver.refresh_names(
                    resolver.set_rules(Rules(base, grants=(("g", granted),) if step % 240 == 0 else ()))
                )
            await resolver.refresh()
            assert world.ends["git.example", "198.51.100.22"] > world.now, f"a gap after {world.now - began:g} s"

    asyncio.run(day())
    assert len(resolver._cache) <= CACHED and len(resolver._asked) <= CACHED and len(resolver._due) <= CACHED + 1
    assert resolver._pending == {}


def test_a_grant_is_open_before_it_is_asked_for_and_gone_with_its_end() -> None:
    world = World({"granted.example": ["granted.example A 198.51.100.91"]})
    resolver = world.resolver()
    assert ask(resolver, "granted.example").rcode() == dns.rcode.NXDOMAIN
    granted = compile_policy([EgressRule(host="granted.example", ports=(9100, 443))])
    names = resolver.set_rules(Rules(compile_policy(ALLOW), grants=(("g", granted),)))
    assert names == ["granted.example"]
    asyncio.run(resolver.refresh_names(names))
    assert ("granted.example", "198.51.100.91") in world.ends
    assert [line["rule"] for line in world.lines] == ["name", "grant:g"]
    assert addresses(ask(resolver, "granted.example")) == ["198.51.100.91"]
    assert resolver.set_rules(Rules(compile_policy(ALLOW))) == []
    assert ask(resolver, "granted.example").rcode() == dns.rcode.NXDOMAIN


def test_the_constants_leave_room_for_a_renewal() -> None:
    assert GRACE > module.RETRY + 3 * (UPSTREAM_TIMEOUT + HESITATION)


def _many(world: World) -> Resolver:
    """A name with as many addresses as an answer may have."""
    world.zone["allowed.example"] = [f"allowed.example A 203.0.113.{number}" for number in range(1, 33)]
    return world.resolver()


@pytest.mark.parametrize(
    ("edns", "limit"), [(None, 512), (512, 512), (530, 530), (1232, 1232), (4096, 1232), (100, 512)]
)
def test_a_datagram_is_cut_where_the_query_says_and_says_so(edns: int | None, limit: int) -> None:
    query = dns.message.make_query("allowed.example", "A", use_edns=False if edns is None else 0, payload=edns or 0)
    wire = asyncio.run(_many(World()).answer(query.to_wire()))
    assert wire is not None and len(wire) <= limit
    cut = dns.message.from_wire(wire)
    assert bool(cut.flags & dns.flags.TC) == (limit < 540)
    # What fits is there, for a client that does not ask again over TCP.
    assert len(cut.answer[0]) >= (29 if limit < 540 else 32)


def test_over_a_stream_an_answer_is_whole() -> None:
    resolver = _many(World())
    query = dns.message.make_query("allowed.example", "A").to_wire()
    asyncio.run(resolver.answer(query))
    whole = dns.message.from_wire(asyncio.run(resolver.answer(query, stream=True)) or b"")
    assert not whole.flags & dns.flags.TC and len(whole.answer[0]) == 32
    # What a datagram is given again is still the datagram's.
    assert len(resolver.recall(query) or b"") <= 512


@pytest.mark.parametrize("kind", ["SRV", "TXT", "MX", "HTTPS", "NS", "ANY"])
def test_a_type_that_is_not_answered_is_a_line(kind: str) -> None:
    world = World()
    assert not ask(world.resolver(), "allowed.example", kind).answer
    [line] = world.lines
    assert (line["verdict"], line["rule"], line["type"]) == ("deny", "type", kind)
    assert not ask(world.resolver(), "allowed.example", "AAAA").answer and len(world.lines) == 1
