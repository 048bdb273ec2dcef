"""Queries to the name servers of the host: which answers count, and where a name without a dot is searched."""

from __future__ import annotations

import asyncio
import time

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from ktrdr_vm.egress.resolver import upstream
from ktrdr_vm.egress.resolver.decisions import flatten
from ktrdr_vm.egress.resolver.upstream import HESITATION, LameServer, ask_upstream

ADDRESS = ("a.example.", "A", "198.51.100.9")


def ask_servers(servers: list[str]) -> dns.message.Message:
    async def answer() -> dns.message.Message:
        return await ask_upstream(lambda: servers)("a.example")

    return asyncio.run(answer())


@pytest.mark.parametrize("rcode", ["FORMERR", "NOTIMP", "BADVERS"])
def test_a_server_that_does_not_know_edns_is_asked_without(monkeypatch: pytest.MonkeyPatch, rcode: str) -> None:
    async def exchange(query: dns.message.Message, *_: object, **__: object) -> tuple[dns.message.Message, bool]:
        reply = dns.message.make_response(query)
        if query.edns >= 0:
            reply.set_rcode(dns.rcode.from_text(rcode))
        else:
            reply.answer.append(dns.rrset.from_text("a.example.", 60, "IN", "A", "198.51.100.9"))
        return reply, False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    assert ask_servers(["192.0.2.53"]).answer


def test_the_next_server_is_asked_if_one_does_not_serve_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exchange(query: dns.message.Message, server: str, **_: object) -> tuple[dns.message.Message, bool]:
        reply = dns.message.make_response(query)
        if server == "192.0.2.1":
            reply.set_rcode(dns.rcode.NOTIMP)
        else:
            reply.answer.append(dns.rrset.from_text("a.example.", 60, "IN", "A", "198.51.100.9"))
        return reply, False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    assert ask_servers(["192.0.2.1", "192.0.2.2"]).answer


def test_a_server_that_does_not_answer_is_passed_over_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exchange(query: dns.message.Message, server: str, **_: object) -> tuple[dns.message.Message, bool]:
        if server == "192.0.2.1":
            await asyncio.sleep(60)
        return reply_with(query, ADDRESS, flags="RA"), False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    began = time.monotonic()
    assert ask_servers(["192.0.2.1", "192.0.2.2"]).answer
    assert 0.7 == HESITATION <= time.monotonic() - began < 3


def test_each_server_is_tried_twice_and_a_try_ends_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose first answer leads to a second query: the limit is that of both."""
    asked = []

    async def exchange(query: dns.message.Message, server: str, **_: object) -> tuple[dns.message.Message, bool]:
        asked.append((server, query.edns))
        if query.edns < 0:
            await asyncio.sleep(60)
        reply = dns.message.make_response(query)
        reply.set_rcode(dns.rcode.FORMERR)
        return reply, False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    monkeypatch.setattr(upstream, "UPSTREAM_TIMEOUT", 0.2)
    began = time.monotonic()
    with pytest.raises(dns.exception.Timeout):
        ask_servers(["192.0.2.1", "192.0.2.2"])
    assert [server for server, edns in asked if edns >= 0] == ["192.0.2.1", "192.0.2.2"] * 2
    assert time.monotonic() - began < 10


def test_the_servers_are_found_again_for_each_query(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def exchange(query: dns.message.Message, server: str, **_: object) -> tuple[dns.message.Message, bool]:
        asked.append(server)
        return reply_with(query, ADDRESS, flags="RA"), False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    ask = ask_upstream(iter([["192.0.2.1"], ["192.0.2.2"]]).__next__)
    for _ in range(2):
        asyncio.run(ask("a.example"))  # type: ignore[arg-type]
    assert asked == ["192.0.2.1", "192.0.2.2"]


def reply_with(
    query: dns.message.Message, *answer: tuple[str, str, str], authority: str = "", flags: str = ""
) -> dns.message.Message:
    """`authority` is the kind of one record, `flags` are further flags, such as `AA RA`."""
    reply = dns.message.make_response(query)
    reply.flags |= dns.flags.from_text(flags)
    reply.answer = [dns.rrset.from_text(name, 60, "IN", kind, value) for name, kind, value in answer]
    if authority:
        value = "ns.example." if authority == "NS" else "ns.example. root.example. 1 3600 600 86400 60"
        reply.authority = [dns.rrset.from_text("example.", 60, "IN", authority, value)]
    return reply


LAME = {
    "a referral": ((), "NS", ""),
    "a referral of a server that resolves": ((), "NS", "RA"),
    "nothing, and not for its own zone": ((), "", ""),
    "an alias that leads elsewhere": ((("a.example.", "CNAME", "b.example."),), "", "AA"),
}


@pytest.mark.parametrize("case", LAME)
def test_a_lame_answer_is_no_answer(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    answer, authority, flags = LAME[case]

    async def exchange(query: dns.message.Message, server: str, **_: object) -> tuple[dns.message.Message, bool]:
        if server == "192.0.2.1":
            return reply_with(query, *answer, authority=authority, flags=flags), False
        return reply_with(query, ADDRESS, flags="RA"), False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    assert flatten(ask_servers(["192.0.2.1", "192.0.2.2"]), "a.example")[0]
    with pytest.raises(LameServer):
        ask_servers(["192.0.2.1"])


@pytest.mark.parametrize(
    ("answer", "authority", "flags"),
    [
        ((), "", "RA"),
        ((), "SOA", "RA"),
        ((), "SOA", "AA"),
        ((("a.example.", "CNAME", "b.example."),), "SOA", "RA"),
    ],
    ids=["without-soa", "recursive", "authoritative", "alias"],
)
def test_the_absence_of_an_address_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[tuple[str, str, str], ...], authority: str, flags: str
) -> None:
    asked = []

    async def exchange(query: dns.message.Message, server: str, **_: object) -> tuple[dns.message.Message, bool]:
        asked.append(server)
        return reply_with(query, *answer, authority=authority, flags=flags), False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    assert ask_servers(["192.0.2.1", "192.0.2.2"]).rcode() == dns.rcode.NOERROR
    assert asked == ["192.0.2.1"]


def test_a_name_without_a_dot_is_searched_as_the_host_searches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    zone = {"mirror.b.example.": "198.51.100.9", "other.": "198.51.100.10"}
    asked = []

    async def exchange(query: dns.message.Message, *_: object, **__: object) -> tuple[dns.message.Message, bool]:
        name = query.question[0].name.to_text()
        asked.append(name)
        reply = reply_with(query, *([(name, "A", zone[name])] if name in zone else []), flags="RA")
        if name not in zone:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply, False

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    ask = ask_upstream(lambda: ["192.0.2.1"], find_domains=lambda: ["a.example", "b.example"])

    def find(name: str) -> list[str]:
        asked.clear()
        return [str(one) for one in flatten(asyncio.run(ask(name)), name)[0]]  # type: ignore[arg-type]

    assert find("mirror") == ["198.51.100.9"] and asked == ["mirror.a.example.", "mirror.b.example."]
    assert find("other") == ["198.51.100.10"] and asked[-1] == "other."
    assert find("missing") == [] and len(asked) == 3
    # The names of a profile have a dot: no domain of the host learns of them.
    assert find("mirror.b") == [] and asked == ["mirror.b."]


def test_a_name_of_etc_hosts_is_asked_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exchange(*_: object, **__: object) -> None:
        raise AssertionError("a name server is asked")

    monkeypatch.setattr("dns.asyncquery.udp_with_fallback", exchange)
    known = {"mirror.corp.example": ["198.51.100.9", "198.51.100.10"], "mirror": ["198.51.100.9"]}
    ask = ask_upstream(lambda: ["192.0.2.1"], find_addresses=lambda name: known.get(name, []))
    for name, addresses in known.items():
        assert [str(one) for one in flatten(asyncio.run(ask(name)), name)[0]] == addresses  # type: ignore[arg-type]
