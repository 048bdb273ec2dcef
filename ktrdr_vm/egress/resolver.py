"""The guest's only resolver. It reads the guest's bytes, so it runs as a user of its own with no privilege at all.

A name that is not allowed is NXDOMAIN and no packet goes upstream. Nothing but A is asked for. An answer is validated, handed to
the writer for the allow set, and given to the guest only then. Aliases are flattened: what an allowed name points to is usable
under the allowed name only.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import cast

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset

from ktrdr_vm.egress.rules import Rules, rules_from_json
from ktrdr_vm.egress.sets import MIN_LIFE

# Bounds of one guest: queries under way, queries a second, cached names, open TCP connections.
IN_FLIGHT = 64
RATE = 300
CACHED = 1024
TCP_CONNECTIONS = 16
UPSTREAM_TIMEOUT = 2.0
CHAIN = 12
# How long a name that the guest asked for is kept fresh in the allow set without being asked for again.
KEEP_FRESH = 24 * 3600


@dataclass(frozen=True)
class Answer:
    """What a name resolves to. `rcode` is NOERROR or SERVFAIL; `expires` is on the monotonic clock."""

    addresses: tuple[str, ...]
    ttl: int
    expires: float
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR


Upstream = Callable[[str], Awaitable[dns.message.Message]]
Writer = Callable[[str, list[str], int], Awaitable[list[str]]]
Note = Callable[..., None]


class Resolver:
    """The decisions; sockets are elsewhere. `upstream` asks, `allow` writes the set, `note` writes the ledger."""

    def __init__(self, rules: Rules, upstream: Upstream, allow: Writer, note: Note, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._upstream = upstream
        self._allow = allow
        self._note = note
        self._clock = clock
        self._cache: OrderedDict[str, Answer] = OrderedDict()
        self._asked: dict[str, float] = {}
        self._pending: dict[str, asyncio.Future[Answer]] = {}
        self._tokens = float(RATE)
        self._refilled = clock()

    def admit(self) -> bool:
        """A token bucket: one guest cannot make the host busy."""
        now = self._clock()
        self._tokens = min(float(RATE), self._tokens + (now - self._refilled) * RATE)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    async def answer(self, wire: bytes) -> bytes | None:
        """The reply to one query, or None for bytes that deserve none."""
        try:
            query = dns.message.from_wire(wire, ignore_trailing=False)
        except (dns.exception.DNSException, ValueError):
            return None
        if query.flags & dns.flags.QR:
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        if query.opcode() != dns.opcode.QUERY:
            reply.set_rcode(dns.rcode.NOTIMP)
        elif len(query.question) != 1:
            reply.set_rcode(dns.rcode.FORMERR)
        elif query.question[0].rdclass != dns.rdataclass.IN:
            reply.set_rcode(dns.rcode.REFUSED)
        else:
            await self._fill(reply, query.question[0])
        return reply.to_wire(max_size=1232)

    async def _fill(self, reply: dns.message.Message, question: dns.rrset.RRset) -> None:
        name = question.name.to_text(omit_final_dot=True).lower()
        if not self._rules.ports(name):
            reply.set_rcode(dns.rcode.NXDOMAIN)
            self._note("dns", "deny", name=name[:253], rule="name", type=dns.rdatatype.to_text(question.rdtype))
            return
        if question.rdtype != dns.rdatatype.A:
            return  # no data: AAAA because IPv6 is off, the rest because they carry data out
        answer = await self.resolve(name)
        reply.set_rcode(answer.rcode)
        if answer.addresses:
            ttl = max(1, min(answer.ttl, int(answer.expires - self._clock())))
            reply.answer.append(dns.rrset.from_text(question.name, ttl, "IN", "A", *answer.addresses))

    async def resolve(self, name: str) -> Answer:
        """The validated addresses of an allowed name, already in the allow set when they are returned."""
        now = self._clock()
        self._asked[name] = now
        if len(self._asked) > CACHED:
            self._asked.pop(next(iter(self._asked)))
        cached = self._cache.get(name)
        if cached is not None and cached.expires > now:
            self._cache.move_to_end(name)
            return cached
        pending = self._pending.get(name)
        if pending is None:
            pending = asyncio.ensure_future(self._resolve_upstream(name))
            self._pending[name] = pending
            pending.add_done_callback(lambda _: self._pending.pop(name, None))
        return await asyncio.shield(pending)

    async def _resolve_upstream(self, name: str) -> Answer:
        try:
            message = await self._upstream(name)
        except (TimeoutError, dns.exception.DNSException, OSError) as error:
            self._note("dns", "deny", name=name, rule="upstream", message=f"no answer: {type(error).__name__}")
            return Answer((), 0, self._clock() + 1, dns.rcode.SERVFAIL)
        if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return Answer((), 0, self._clock() + 1, dns.rcode.SERVFAIL)
        addresses, ttl = flatten(message, name)
        usable = []
        for address in addresses:
            refused = self._rules.judge_address(name, address)
            if refused:
                self._note("dns", "deny", name=name, address=str(address), rule="reserved", message=refused)
            else:
                usable.append(str(address))
        if usable:
            usable = await self._allow(name, usable, ttl)
            self._note("dns", "allow", name=name, addresses=usable, ttl=ttl, rule="name")
        answer = Answer(tuple(usable), ttl, self._clock() + max(1, min(ttl, 3600)))
        self._cache[name] = answer
        self._cache.move_to_end(name)
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return answer

    async def refresh(self) -> None:
        """Renew what ends soon for every name with other ports that the guest asked for: no gap for a flow that lives on."""
        now = self._clock()
        for name, asked in list(self._asked.items()):
            if now - asked > KEEP_FRESH:
                del self._asked[name]
                continue
            cached = self._cache.get(name)
            if cached is not None and now < cached.expires - cached.ttl + max(cached.ttl, MIN_LIFE):
                continue
            if self._rules.other_ports(name):
                answer = await self._resolve_upstream(name)
                if answer.rcode != dns.rcode.NOERROR and cached is not None and cached.addresses:
                    # Upstream is down: the last good addresses stay open, as a resolver's stale answer would (RFC 8767).
                    await self._allow(name, list(cached.addresses), MIN_LIFE)


def flatten(message: dns.message.Message, name: str) -> tuple[list[IPv4Address], int]:
    """Follow the aliases of an answer to its addresses: they, and the smallest TTL on the way."""
    wanted = dns.name.from_text(name)
    ttl = 3600
    for _ in range(CHAIN):
        for rrset in message.answer:
            if rrset.name == wanted and rrset.rdtype == dns.rdatatype.A:
                return [IPv4Address(record.address) for record in rrset][:32], min(ttl, rrset.ttl)
        aliases = [rrset for rrset in message.answer if rrset.name == wanted and rrset.rdtype == dns.rdatatype.CNAME]
        if not aliases:
            return [], min(ttl, 30)
        ttl = min(ttl, aliases[0].ttl)
        wanted = aliases[0][0].target
    return [], 30


def ask_upstream(servers: list[str], port: int = 53) -> Upstream:
    """Ask each server in turn over UDP, over TCP when the answer was cut."""

    async def ask(name: str) -> dns.message.Message:
        query = dns.message.make_query(name, dns.rdatatype.A, use_edns=0, payload=1232)
        last: Exception = TimeoutError()
        for server in servers:
            try:
                message, _ = await dns.asyncquery.udp_with_fallback(query, server, timeout=UPSTREAM_TIMEOUT, port=port)
                return message
            except (dns.exception.DNSException, OSError) as error:
                last = error
        raise last

    return ask


def find_upstreams() -> list[str]:
    """The host's own resolvers, from its resolv.conf."""
    try:
        return [str(server) for server in dns.resolver.Resolver(configure=True).nameservers][:3]
    except dns.exception.DNSException:
        return []


class WriterChannel:
    """Typed requests to the guard over a SEQPACKET socket: one JSON object a packet, answered by number."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._number = 0
        self._waiting: dict[int, asyncio.Future[list[str]]] = {}
        self._lost = 0

    def note(self, kind: str, verdict: str, **fields: object) -> None:
        # When the guard is busy the line is lost; the decision stands, and the next line says how many were.
        try:
            self._channel.send(json.dumps({"note": [kind, verdict, fields], "lost": self._lost}).encode())
            self._lost = 0
        except BlockingIOError:
            self._lost += 1

    async def allow(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        self._number += 1
        number = self._number
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await asyncio.get_running_loop().sock_sendall(
                self._channel, json.dumps({"allow": [name, addresses, ttl], "number": number}).encode()
            )
            return await asyncio.wait_for(future, 5)
        finally:
            del self._waiting[number]

    async def listen(self) -> None:
        while True:
            packet = await asyncio.get_running_loop().sock_recv(self._channel, 65536)
            if not packet:
                os._exit(0)  # the guard is gone: nothing may answer any more
            reply = json.loads(packet)
            waiting = self._waiting.get(reply["number"])
            if waiting is not None and not waiting.done():
                waiting.set_result(reply["accepted"])


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._under_way: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(self._under_way) >= IN_FLIGHT or not self._resolver.admit():
            return
        task = asyncio.ensure_future(self._reply(data, addr))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _reply(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = await self._resolver.answer(data)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


async def _serve(config: dict[str, object], udp: socket.socket, tcp: socket.socket, channel: socket.socket) -> None:
    writer = WriterChannel(channel)
    policy, exceptions = config["policy"], config["exceptions"]
    assert isinstance(policy, dict) and isinstance(exceptions, list)
    resolver = Resolver(rules_from_json(policy, exceptions), ask_upstream(find_upstreams()), writer.allow, writer.note)
    open_connections = 0

    async def tcp_client(reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        if open_connections >= TCP_CONNECTIONS:
            stream.close()
            return
        open_connections += 1
        try:
            async with asyncio.timeout(10):
                while True:
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
                    reply = await resolver.answer(data) if resolver.admit() else None
                    if reply is None:
                        return
                    stream.write(len(reply).to_bytes(2, "big") + reply)
                    await stream.drain()
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            pass
        finally:
            open_connections -= 1
            stream.close()

    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Udp(resolver), sock=udp)
    await asyncio.start_server(tcp_client, sock=tcp, limit=65536)
    listening = asyncio.ensure_future(writer.listen())
    while not listening.done():
        await asyncio.sleep(1)
        await resolver.refresh()


def run_resolver(config: dict[str, object], udp: socket.socket, tcp: socket.socket, channel: socket.socket) -> None:
    """Serve until the guard ends. The caller has given up every privilege."""
    for one in (udp, tcp, channel):
        one.setblocking(False)
    asyncio.run(_serve(config, udp, tcp, channel))
