"""The guest's only resolver. It reads the guest's bytes, so it runs as a separate user without privileges.

A name that is not allowed gets NXDOMAIN, and no packet is sent upstream. Only A records are queried. An answer is
validated and passed to the writer for the allow set, and only then returned to the guest. Aliases are flattened: the
target of an allowed name is usable under the allowed name only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from ktrdr_vm.egress.allow_sets import MIN_LIFE
from ktrdr_vm.egress.rate_limit import Bucket
from ktrdr_vm.egress.rules import Rules

# Limits for one guest: queries per second, cached names, replies kept as they were sent, names refreshed at once.
RATE = 300
# Queries per second of the proxy: one for each connection or request to an allowed name.
PROXY_RATE = 3000
CACHED = 1024
REPLIES, LONGEST_QUESTION = 256, 512
REFRESHING = 8
CHAIN = 12
# Seconds without an answer after which a failure marks the upstream as down: for DOWN seconds, queries fail
# immediately.
SILENCE = 2.0
# Bytes of a datagram: the limit of RFC 1035 without EDNS, and a size that is not fragmented on any path.
_PLAIN_SIZE, _MOST_SIZE = 512, 1232
# Bytes of an A record whose name is a pointer to that of the question.
_A_RECORD = 16
DOWN = 1.0
# Seconds before a failed refresh of a name is repeated.
RETRY = 15.0
# Seconds for which a name that the guest has queried is kept fresh in the allow set without a further query.
KEEP_FRESH = 24 * 3600


@dataclass(frozen=True)
class Answer:
    """The result for a name. `rcode` is NOERROR or SERVFAIL; `expires` is on the monotonic clock."""

    addresses: tuple[str, ...]
    ttl: int
    expires: float
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR


def _to_datagram(query: dns.message.Message, reply: dns.message.Message) -> bytes:
    """The reply in one datagram. If it is truncated (TC), it still has the addresses that fit: a client without TCP
    uses these."""
    size = min(max(query.payload, _PLAIN_SIZE), _MOST_SIZE) if query.edns >= 0 else _PLAIN_SIZE
    wire = reply.to_wire(max_size=65535)
    if len(wire) > size and reply.answer:
        rrset, surplus = reply.answer[0], -((size - len(wire)) // _A_RECORD)
        reply.answer = [dns.rrset.from_rdata_list(rrset.name, rrset.ttl, list(rrset)[:-surplus])]
        reply.flags |= dns.flags.TC
        wire = reply.to_wire(max_size=size)
    return wire


class _Kept(NamedTuple):
    """The bytes of a reply after its id, and what it was made from."""

    name: str
    answer: Answer
    ttl: int
    tail: bytes


Upstream = Callable[[str], Awaitable[dns.message.Message]]
Writer = Callable[[str, list[str], int], Awaitable[list[str]]]
Note = Callable[..., None]


class Resolver:
    """The decisions, without sockets. `upstream` queries a server, `allow` writes the set, `note` writes the ledger."""

    def __init__(
        self, rules: Rules, upstream: Upstream, allow: Writer, note: Note, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules = rules
        self._upstream = upstream
        self._allow = allow
        self._note = note
        self._clock = clock
        self._cache: OrderedDict[str, Answer] = OrderedDict()
        self._asked: dict[str, float] = {}
        self._due: dict[str, float] = {}
        """The time at which the elements of a name are to be renewed."""
        self._pending: dict[str, asyncio.Future[Answer]] = {}
        self._last_good = clock()
        self._down_until = 0.0
        self._share, self._proxy_share = Bucket(RATE, RATE, clock), Bucket(PROXY_RATE, PROXY_RATE, clock)
        self._replies: OrderedDict[bytes, _Kept] = OrderedDict()
        """By the bytes of the query after its id."""

    def set_rules(self, rules: Rules) -> list[str]:
        """Replace the rules, because grants have changed. Returns the names to resolve now, so that their addresses are
        open before the next query."""
        self._rules = rules
        # Each name is resolved again; until then its entry is the last good answer.
        self._cache = OrderedDict((name, replace(answer, expires=0)) for name, answer in self._cache.items())
        self._due.clear()
        # A pending query was checked by the old rules: its answer is returned to those that wait for it already, and to
        # no others.
        self._pending = {}
        self._replies.clear()
        granted = [name for _, policy in rules.grants for name, _ in policy.other_names]
        return [name for name in (*granted, *self._asked) if rules.other_ports(name)]

    def admit(self, *, own: bool = False) -> bool:
        """Count one query against the rate limit of the guest or, if `own`, of the proxy; True if it is within the
        limit."""
        return not (self._proxy_share if own else self._share).take()

    def recall(self, wire: bytes) -> bytes | None:
        """The reply to a query that was answered before in the same bytes, while the answer is valid; None if it must
        be resolved.

        The proxy sends a query for each connection and each request, and repeats the same names.
        """
        kept = self._replies.get(wire[2:])
        if kept is None or self._cache.get(kept.name) is not kept.answer:
            return None
        if kept.answer.expires <= self._clock() or self._life(kept.answer) != kept.ttl:
            return None
        self._cache.move_to_end(kept.name)
        self._remember_asked(kept.name)
        return wire[:2] + kept.tail

    def _life(self, answer: Answer) -> int:
        """The TTL of a reply that is sent now."""
        return max(1, min(answer.ttl, int(answer.expires - self._clock())))

    async def answer(self, wire: bytes, *, quiet: bool = False, stream: bool = False) -> bytes | None:
        """The reply to one query, or None for bytes that get no reply. With `quiet` a refusal is not noted, because the
        host sent the query.

        In a datagram it is truncated, with TC set, to the size in the EDNS of the query, or to 512 bytes; over a
        `stream` it is complete.
        """
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
            name, answer = await self._fill(reply, query.question[0], quiet)
            if answer is not None and not stream and self._cache.get(name) is answer and len(wire) <= LONGEST_QUESTION:
                return self._keep(wire, _to_datagram(query, reply), name, answer)
        return reply.to_wire(max_size=65535) if stream else _to_datagram(query, reply)

    def _keep(self, wire: bytes, reply: bytes, name: str, answer: Answer) -> bytes:
        self._replies[wire[2:]] = _Kept(name, answer, self._life(answer), reply[2:])
        if len(self._replies) > REPLIES:
            self._replies.popitem(last=False)
        return reply

    async def _fill(
        self, reply: dns.message.Message, question: dns.rrset.RRset, quiet: bool
    ) -> tuple[str, Answer | None]:
        """Fill the reply. Returns the name of the query, and the answer if it has addresses."""
        name = question.name.to_text(omit_final_dot=True).lower()
        if not self._rules.rule(name):
            reply.set_rcode(dns.rcode.NXDOMAIN)
            if not quiet:
                self._note("dns", "deny", name=name[:253], rule="name", type=dns.rdatatype.to_text(question.rdtype))
            return name, None
        if question.rdtype != dns.rdatatype.A:
            # No data: AAAA because IPv6 is off, other types because they can carry data out. AAAA is not noted, because
            # every lookup queries it as well.
            if question.rdtype != dns.rdatatype.AAAA and not quiet:
                kind = dns.rdatatype.to_text(question.rdtype)
                self._note(
                    "dns",
                    "deny",
                    name=name[:253],
                    rule="type",
                    type=kind,
                    message=f"{kind} queries are not answered, only A",
                )
            return name, None
        answer = await self.resolve(name)
        reply.set_rcode(answer.rcode)
        if not answer.addresses:
            return name, None
        reply.answer.append(dns.rrset.from_text(question.name, self._life(answer), "IN", "A", *answer.addresses))
        return name, answer

    async def resolve(self, name: str) -> Answer:
        """The validated addresses of an allowed name, which are in the allow set when they are returned."""
        now = self._clock()
        self._remember_asked(name)
        cached = self._cache.get(name)
        if cached is not None and cached.expires > now:
            self._cache.move_to_end(name)
            return cached
        if len(self._pending) >= CACHED:
            return Answer((), 0, now, dns.rcode.SERVFAIL)
        pending = self._pending.get(name)
        if pending is None:
            pending = asyncio.ensure_future(self._resolve_upstream(name))
            questions = self._pending
            questions[name] = pending
            pending.add_done_callback(lambda _: questions.pop(name, None))
        return await asyncio.shield(pending)

    def _remember_asked(self, name: str) -> None:
        """Record a query for a name whose addresses are in the sets. Beyond CACHED names, the one with the oldest query
        is removed."""
        if not self._rules.other_ports(name):
            return
        self._asked.pop(name, None)
        self._asked[name] = self._clock()
        if len(self._asked) > CACHED:
            self._asked.pop(next(iter(self._asked)))

    async def _resolve_upstream(self, name: str) -> Answer:
        rules = self._rules
        try:
            if self._clock() < self._down_until:
                raise dns.exception.Timeout
            message = await self._upstream(name)
        except Exception as error:
            # Whatever the library raises: the guest gets an answer, and the ledger a line.
            now = self._clock()
            if now - self._last_good > SILENCE and now >= self._down_until:
                self._down_until = now + DOWN
            self._note("dns", "deny", name=name, rule="upstream", message=f"no answer: {type(error).__name__}")
            return Answer((), 0, now + 1, dns.rcode.SERVFAIL)
        self._last_good = self._clock()
        if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            self._note(
                "dns", "deny", name=name, rule="upstream", message=f"upstream says {dns.rcode.to_text(message.rcode())}"
            )
            return Answer((), 0, self._clock() + 1, dns.rcode.SERVFAIL)
        addresses, ttl = flatten(message, name)
        usable = []
        for address in addresses:
            refused = rules.judge_address(name, address)
            if refused:
                self._note("dns", "deny", name=name, address=str(address), rule="reserved", message=refused)
            else:
                usable.append(str(address))
        if usable:
            asked = usable
            try:
                usable = await self._allow(name, asked, ttl)
            except TimeoutError:
                # Not in the set, so it must not be answered.
                return Answer((), 0, self._clock() + 1, dns.rcode.SERVFAIL)
            for one in set(asked) - set(usable):
                refused = f"{one} is not opened: it is in a network of this host, or what allowed it has ended"
                self._note("dns", "deny", name=name, address=one, rule="reserved", message=refused)
        if usable:
            self._note("dns", "allow", name=name, addresses=usable, ttl=ttl, rule=rules.rule(name))
        answer = Answer(tuple(usable), ttl, self._clock() + max(1, min(ttl, 3600)))
        if rules is self._rules:
            self._remember(name, answer)
        return answer

    def _remember(self, name: str, answer: Answer) -> None:
        self._cache[name] = answer
        self._cache.move_to_end(name)
        self._due[name] = self._clock() + max(answer.ttl, MIN_LIFE)
        while len(self._cache) > CACHED:
            self._due.pop(self._cache.popitem(last=False)[0], None)

    async def refresh(self) -> None:
        """Renew the elements that end soon, for every name with other ports that the guest has queried, so that open
        flows are not interrupted."""
        now = self._clock()
        wanted = []
        for name, asked in list(self._asked.items()):
            if now - asked > KEEP_FRESH or not self._rules.rule(name):
                del self._asked[name]
            elif now >= self._due.get(name, now) and self._rules.other_ports(name):
                wanted.append(name)
        await self.refresh_names(wanted)

    async def refresh_names(self, names: Iterable[str]) -> None:
        """Resolve each name again, at most REFRESHING at a time."""
        limit = asyncio.Semaphore(REFRESHING)

        async def one(name: str) -> None:
            async with limit:
                await self._refresh(name)

        await asyncio.gather(*(one(name) for name in dict.fromkeys(names)))

    async def _refresh(self, name: str) -> None:
        cached = self._cache.get(name)
        answer = await self._resolve_upstream(name)
        if answer.rcode == dns.rcode.NOERROR:
            if name not in self._asked:
                self._remember_asked(name)
            return
        self._due[name] = self._clock() + RETRY
        if cached is not None and cached.addresses:
            # Upstream is down: the last good addresses stay open, as a resolver's stale answer would (RFC 8767).
            # A guard that is busy does not answer in time: the name is renewed again after RETRY.
            with contextlib.suppress(TimeoutError):
                await self._allow(name, list(cached.addresses), MIN_LIFE)


def flatten(message: dns.message.Message, name: str) -> tuple[list[IPv4Address], int]:
    """Follow the aliases of an answer. Returns the addresses at their end, and the smallest TTL of the chain."""
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
