"""Queries to the name servers of the host, as its own libc sends them."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from ktrdr_vm.egress.resolver.decisions import Upstream

# Seconds, about the timeout of the host's libc for one server; three of them and a pause are less than the grace of an
# open address. For one attempt, with the repetition over TCP or without EDNS.
UPSTREAM_TIMEOUT = 4.0
# Seconds after which the next server is queried as well.
HESITATION = 0.7
# As in glibc: the next server is asked.
_UNABLE = (dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP)
# What a server says that does not know EDNS, which the libc of the host does not use.
_WITHOUT_EDNS = (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)

Find = Callable[[], list[str]]
FindAddresses = Callable[[str], list[str]]
# Seconds for which an address of /etc/hosts is used: the file may change at any time.
_HOSTS_TTL = 60


class LameServer(dns.exception.DNSException):
    """A name server does not resolve the name: it refers to other name servers, or leaves an alias unresolved."""


def ask_upstream(
    find_servers: Find,
    port: int = 53,
    find_domains: Find = list,
    find_addresses: FindAddresses = lambda _name: [],
    over_tcp: Callable[[], bool] = lambda: False,
) -> Upstream:
    """Query over UDP, and over TCP if the answer is truncated; over TCP alone if `over_tcp` says so.

    If a server fails or does not answer within HESITATION seconds, the next one is queried as well, and each server is
    queried once more, as a datagram may be lost. A server that does not know EDNS is queried without. The first answer
    counts. SERVFAIL, REFUSED and NOTIMP count only if no other server has an answer, and a lame answer never counts.

    A name to which `find_addresses` has an answer is asked nowhere. One without a dot is searched in the domains of
    `find_domains` first; the answer then begins with an alias.
    """
    over_udp = functools.partial(dns.asyncquery.udp_with_fallback, ignore_unexpected=True)
    # Before dnspython 2.6, as in Debian 12, a datagram that is no answer to the query ends the attempt.
    if "ignore_errors" in inspect.signature(over_udp).parameters:
        over_udp = functools.partial(over_udp, ignore_errors=True)

    async def exchange(query: dns.message.Message, server: str) -> dns.message.Message:
        if over_tcp():
            return await dns.asyncquery.tcp(query, server, timeout=UPSTREAM_TIMEOUT, port=port)
        message, _ = await over_udp(query, server, timeout=UPSTREAM_TIMEOUT, port=port)
        return message

    async def one(name: str, server: str) -> dns.message.Message:
        try:
            async with asyncio.timeout(UPSTREAM_TIMEOUT):
                return await attempt(name, server)
        except TimeoutError:
            raise dns.exception.Timeout from None

    async def attempt(name: str, server: str) -> dns.message.Message:
        query = dns.message.make_query(name, dns.rdatatype.A, use_edns=0, payload=1232)
        message = await exchange(query, server)
        if message.rcode() in _WITHOUT_EDNS:
            message = await exchange(dns.message.make_query(name, dns.rdatatype.A), server)
        if _is_lame(message):
            raise LameServer
        return message

    async def ask(name: str) -> dns.message.Message:
        if addresses := find_addresses(name):
            return _answer(name, addresses)
        if "." not in name:
            # The profile has names with a dot only; such a name is that of a source in the host's own settings.
            for domain in find_domains():
                message = await _race(f"{name}.{domain}", find_servers(), one)
                if message.rcode() == dns.rcode.NOERROR and _has_address(message):
                    alias = dns.rrset.from_text(f"{name}.", 3600, "IN", "CNAME", f"{name}.{domain}.")
                    message.answer.insert(0, alias)
                    return message
        return await _race(name, find_servers(), one)

    return ask


async def _race(name: str, servers: list[str], one: Callable[[str, str], Any]) -> dns.message.Message:
    """The first answer; of servers that are unable, one of theirs. Raises what the last server that failed raised."""
    waiting: set[asyncio.Task[dns.message.Message]] = set()
    last: BaseException = OSError("no upstream is configured on the host")
    unable: dns.message.Message | None = None
    attempts = servers * 2
    try:
        for number, server in enumerate(attempts, start=1):
            waiting.add(asyncio.ensure_future(one(name, server)))
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=HESITATION if number < len(attempts) else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    error = task.exception()
                    if error is not None:
                        last = error
                    elif task.result().rcode() in _UNABLE:
                        unable = task.result()
                    else:
                        return task.result()
                if not done or number < len(attempts):
                    break
    finally:
        for task in waiting:
            task.cancel()
    if unable is not None:
        return unable
    raise last


def _answer(name: str, addresses: list[str]) -> dns.message.Message:
    query = dns.message.make_query(name, dns.rdatatype.A)
    message = dns.message.make_response(query, recursion_available=True)
    message.answer.append(dns.rrset.from_text(f"{name}.", _HOSTS_TTL, "IN", "A", *addresses))
    return message


def _has_address(message: dns.message.Message) -> bool:
    return any(rrset.rdtype == dns.rdatatype.A for rrset in message.answer)


def _is_lame(message: dns.message.Message) -> bool:
    """True for an answer without an address that does not mean that there is none.

    A server that resolves names for its clients sets RA. One that does not can say so for its own zones (AA), except
    of an alias that leads out of them. A referral names other name servers (NS) and has no SOA (RFC 2308, 2.2).
    """
    if message.rcode() != dns.rcode.NOERROR or _has_address(message):
        return False
    kinds = {rrset.rdtype for rrset in message.authority}
    if not message.answer and dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds:
        return not message.flags & dns.flags.AA
    if message.flags & dns.flags.RA:
        return False
    return not message.flags & dns.flags.AA or bool(message.answer)
