"""The resolver's ways out: queries over TCP, bounded like those over UDP, and notes that the guard does not take."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import dns.message
import pytest

from ktrdr_vm.egress.resolver.decisions import RATE, Resolver
from ktrdr_vm.egress.resolver.process import TCP_CONNECTIONS, Streams, WriterChannel
from ktrdr_vm.egress.rules import Rules
from ktrdr_vm.plan.egress_policy import compile_policy


class Writer:
    """The channel to the guard: it counts."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    def count(self, rule: str) -> None:
        self.counted.append(rule)


class Stream:
    """The end of a connection on which replies are written."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None: ...

    def close(self) -> None:
        self.closed = True


QUERY = dns.message.make_query("evil.example", "A").to_wire()
FRAME = len(QUERY).to_bytes(2, "big") + QUERY


def make_streams() -> tuple[Streams, Writer]:
    async def nobody(*_: Any) -> Any:
        raise AssertionError("a name that is not allowed is asked for")

    writer = Writer()
    resolver = Resolver(Rules(compile_policy(())), nobody, nobody, lambda *_words, **_fields: None, lambda: 1000.0)
    return Streams(resolver, writer), writer  # type: ignore[arg-type]


async def talk(streams: Streams, data: bytes) -> Stream:
    reader, stream = asyncio.StreamReader(), Stream()
    reader.feed_data(data)
    reader.feed_eof()
    await streams.serve(reader, stream)  # type: ignore[arg-type]
    return stream


def count_replies(sent: bytes) -> int:
    count = 0
    while sent:
        sent = sent[2 + int.from_bytes(sent[:2], "big") :]
        count += 1
    return count


def test_a_query_beyond_the_limit_of_the_guest_ends_its_connection_and_is_counted() -> None:
    streams, writer = make_streams()
    stream = asyncio.run(talk(streams, FRAME * (RATE + 5)))
    assert count_replies(stream.sent) == RATE and stream.closed
    assert asyncio.run(talk(streams, FRAME)).sent == b""
    assert writer.counted == ["rate", "rate"]


@pytest.mark.parametrize(
    "data", [b"", b"\0", FRAME[:-1], b"\0\0", b"\0\3abc"], ids=["none", "half", "cut", "empty", "no"]
)
def test_what_is_no_query_ends_its_connection(data: bytes) -> None:
    streams, writer = make_streams()
    stream = asyncio.run(talk(streams, data))
    assert (stream.sent, stream.closed, writer.counted) == (b"", True, [])


def test_so_many_connections_are_open_at_once() -> None:
    streams, _ = make_streams()

    async def hold() -> list[bool]:
        held = [(asyncio.StreamReader(), Stream()) for _ in range(TCP_CONNECTIONS + 1)]
        tasks = [asyncio.ensure_future(streams.serve(*one)) for one in held]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        closed = [stream.closed for _, stream in held]
        for reader, _ in held:
            reader.feed_eof()
        await asyncio.gather(*tasks)
        return closed

    assert asyncio.run(hold()) == [False] * TCP_CONNECTIONS + [True]
    assert count_replies(asyncio.run(talk(streams, FRAME)).sent) == 1


def test_a_note_that_a_busy_guard_does_not_take_is_counted_and_told_later() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        writer, noted = WriterChannel(ours), 5000
        for number in range(noted):
            writer.note("dns", "deny", name=f"n{number}.example.com")
        writer.flush()

        def receive() -> list[Any]:
            said = []
            while True:
                try:
                    said.append(json.loads(theirs.recv(65536)))
                except BlockingIOError:
                    return said

        taken = receive()
        assert 0 < len(taken) < noted
        writer.flush()
        assert receive() == [{"count": ["suppressed", noted - len(taken)]}]
        writer.flush()
        assert receive() == []
