"""The resolver as a process: its sockets, its upstreams, and its channel to the guard. It has no privileges and reads
hostile bytes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from typing import cast

import dns.asyncbackend
import dns.message
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from ktrdr_vm.egress.resolver.decisions import Resolver
from ktrdr_vm.egress.resolver.messages import AllowRequest, Count, Grants, Note, parse_guard_message
from ktrdr_vm.egress.resolver.upstream import ask_upstream
from ktrdr_vm.egress.rules import Rules, rules_from_json
from ktrdr_vm.host.name_servers import asks_over_tcp, find_host_addresses, find_search_domains, find_upstreams
from ktrdr_vm.plan.egress_policy import compile_policy
from ktrdr_vm.profile.egress_rule import EgressRule

# Limits for one guest: pending queries and open TCP connections.
IN_FLIGHT = 64
TCP_CONNECTIONS = 16


class WriterChannel:
    """Typed requests to the guard over a SEQPACKET socket: one JSON object in a packet, answered by number."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._number = 0
        self._waiting: dict[int, asyncio.Future[list[str]]] = {}
        self._counts: dict[str, int] = {}

    def note(self, kind: str, verdict: str, **fields: object) -> None:
        # If the guard is busy, the line is lost. The decision stays in effect, and lost lines are counted.
        if not self._send(Note(kind, verdict, fields)):
            self.count("suppressed")

    def count(self, rule: str) -> None:
        """Count a query without a line of its own: `suppressed`, or `rate` for one beyond the guest's limit."""
        self._counts[rule] = self._counts.get(rule, 0) + 1

    def flush(self) -> None:
        """Send the counts; those that cannot be sent now are kept."""
        for rule, count in list(self._counts.items()):
            if self._send(Count(rule, count)):
                del self._counts[rule]

    def _send(self, message: Note | Count) -> bool:
        try:
            self._channel.send(json.dumps(message.to_json()).encode())
        except OSError:
            return False
        return True

    async def allow(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        self._number += 1
        number = self._number
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            request = AllowRequest(number, name, tuple(addresses), ttl)
            await asyncio.get_running_loop().sock_sendall(self._channel, json.dumps(request.to_json()).encode())
            return await asyncio.wait_for(future, 5)
        finally:
            del self._waiting[number]

    async def listen(self, take_grants: Callable[[list[list[object]]], None]) -> None:
        """Read the messages of the guard: answers to `allow`, and the grants that apply now."""
        while True:
            packet = await asyncio.get_running_loop().sock_recv(self._channel, 65536)
            if not packet:
                os._exit(0)  # the guard has ended: nothing may answer any more
            message = parse_guard_message(packet)
            if isinstance(message, Grants):
                take_grants(message.grants)
                continue
            waiting = self._waiting.get(message.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(list(message.accepted))


class _Udp(asyncio.DatagramProtocol):
    """With `own`, queries of the proxy, for names that it has checked, and of `egress test`."""

    def __init__(self, resolver: Resolver, writer: WriterChannel, *, own: bool) -> None:
        self._resolver = resolver
        self._writer = writer
        self._own = own
        self._under_way: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        if len(self._under_way) >= IN_FLIGHT or not self._resolver.admit(own=self._own):
            self._writer.count("rate")
            return
        reply = self._resolver.recall(data)
        if reply is not None:
            self._transport.sendto(reply, addr)
            return
        task = asyncio.ensure_future(self._reply(data, addr))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _reply(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        reply = await self._resolver.answer(data, quiet=self._own)
        if reply is not None:
            self._transport.sendto(reply, addr)


class Streams:
    """Queries of the guest over TCP, each with its length in front. One that gets no reply ends its connection."""

    def __init__(self, resolver: Resolver, writer: WriterChannel) -> None:
        self._resolver = resolver
        self._writer = writer
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        """Answer the queries of one connection, for ten seconds at most."""
        if self._open >= TCP_CONNECTIONS:
            stream.close()
            return
        self._open += 1
        try:
            async with asyncio.timeout(10):
                while reply := await self._reply(reader):
                    stream.write(len(reply).to_bytes(2, "big") + reply)
                    await stream.drain()
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            pass
        finally:
            self._open -= 1
            stream.close()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes | None:
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if not self._resolver.admit():
            self._writer.count("rate")
            return None
        return await self._resolver.answer(data, stream=True)


async def _serve(
    config: dict[str, object], udp: socket.socket, tcp: socket.socket, own: socket.socket, channel: socket.socket
) -> None:
    writer = WriterChannel(channel)
    policy, exceptions = config["policy"], config["exceptions"]
    assert isinstance(policy, dict) and isinstance(exceptions, list)
    grants = config["grants"]
    assert isinstance(grants, list)
    upstream = ask_upstream(
        find_upstreams, find_domains=find_search_domains, find_addresses=find_host_addresses, over_tcp=asks_over_tcp
    )
    resolver = Resolver(rules_from_json(policy, exceptions, grants), upstream, writer.allow, writer.note)
    renewing: set[asyncio.Task[None]] = set()

    def take_grants(granted: list[list[object]]) -> None:
        task = asyncio.ensure_future(
            resolver.refresh_names(resolver.set_rules(rules_from_json(policy, exceptions, granted)))
        )
        renewing.add(task)
        task.add_done_callback(renewing.discard)

    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Udp(resolver, writer, own=False), sock=udp)
    await loop.create_datagram_endpoint(lambda: _Udp(resolver, writer, own=True), sock=own)
    await asyncio.start_server(Streams(resolver, writer).serve, sock=tcp, limit=65536)
    listening = asyncio.ensure_future(writer.listen(take_grants))
    take_grants(grants)
    while not listening.done():
        await asyncio.sleep(1)
        writer.flush()
        await resolver.refresh()


def rehearse_resolver() -> None:
    """Answer one query, with an internal upstream that answers with an alias. Raises the error that a guest's query
    would cause.

    dnspython imports the modules of record types and its socket backend when it first needs them: all of them are
    loaded here.
    """
    if hasattr(dns.rdata, "load_all_types"):
        dns.rdata.load_all_types()  # type: ignore[no-untyped-call]
    else:
        # dnspython 2.3, which is that of Debian 12.
        for number in dns.rdatatype.RdataType:
            dns.rdata.get_rdata_class(dns.rdataclass.IN, number)  # type: ignore[no-untyped-call]
    asyncio.run(_rehearse())


async def _rehearse() -> None:
    dns.asyncbackend.get_default_backend()
    asked, target, address = "rehearsal.example", "target.example.", "192.0.2.1"

    async def upstream(name: str) -> dns.message.Message:
        reply = dns.message.make_response(dns.message.make_query(name, dns.rdatatype.A))
        reply.answer = [
            dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", target),
            dns.rrset.from_text(target, 60, "IN", "A", address),
        ]
        return dns.message.from_wire(reply.to_wire())

    async def allow(_name: str, addresses: list[str], _ttl: int) -> list[str]:
        return addresses

    rules = Rules(compile_policy((EgressRule(host=asked, ports=(443,)),)))
    resolver = Resolver(rules, upstream, allow, lambda *_words, **_fields: None)
    query = dns.message.make_query(asked, dns.rdatatype.A, use_edns=0)
    raw = await resolver.answer(query.to_wire())
    found = {record.to_text() for rrset in dns.message.from_wire(raw or b"").answer for record in rrset}
    if found != {address}:
        raise RuntimeError(f"the resolver answers its own test query with {sorted(found)}, and not with {address}")


def run_resolver(
    config: dict[str, object], udp: socket.socket, tcp: socket.socket, own: socket.socket, channel: socket.socket
) -> None:
    """Serve the guest on `udp` and `tcp`, and the proxy on `own`, until the guard ends. The caller has dropped every
    privilege."""
    for one in (udp, tcp, own, channel):
        one.setblocking(False)
    asyncio.run(_serve(config, udp, tcp, own, channel))
