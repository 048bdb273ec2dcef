"""The resolver with the dnspython of Debian 12, which lacks two things that later ones have."""

from __future__ import annotations

import asyncio

import dns.asyncquery
import dns.message
import dns.rdata
import dns.rdatatype
import pytest

from ktrdr_vm.egress.resolver import process
from ktrdr_vm.egress.resolver.upstream import ask_upstream


def test_every_record_type_is_loaded_in_front_by_an_older_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        pass

    loaded: list[int] = []
    monkeypatch.setattr(process, "_rehearse", nothing)
    monkeypatch.delattr(dns.rdata, "load_all_types", raising=False)
    monkeypatch.setattr(dns.rdata, "get_rdata_class", lambda _class, number: loaded.append(number))
    process.rehearse_resolver()
    assert set(loaded) == set(dns.rdatatype.RdataType)


def ask(servers: list[str], port: int) -> dns.message.Message:
    async def answer() -> dns.message.Message:
        return await ask_upstream(lambda: servers, port)("allowed.example")

    return asyncio.run(answer())


def test_upstream_is_queried_with_the_options_that_an_older_dnspython_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def udp_with_fallback(
        q: dns.message.Message, where: str, timeout: float, port: int, ignore_unexpected: bool = False
    ) -> tuple[dns.message.Message, bool]:
        assert ignore_unexpected and (where, port) == ("192.0.2.1", 5353)
        return dns.message.make_response(q, recursion_available=True), False

    monkeypatch.setattr(dns.asyncquery, "udp_with_fallback", udp_with_fallback)
    answer = ask(["192.0.2.1"], 5353)
    assert answer.question[0].name.to_text() == "allowed.example."


def test_a_later_dnspython_ignores_what_is_no_answer_to_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    async def udp_with_fallback(
        q: dns.message.Message,
        where: str,
        timeout: float,
        port: int,
        ignore_unexpected: bool = False,
        ignore_errors: bool = False,
    ) -> tuple[dns.message.Message, bool]:
        assert ignore_unexpected and ignore_errors
        return dns.message.make_response(q, recursion_available=True), False

    monkeypatch.setattr(dns.asyncquery, "udp_with_fallback", udp_with_fallback)
    ask(["192.0.2.1"], 53)
