"""Grants in a running guard: applied by every part that enforces rules, and ended in every part, including open
connections."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.grant import MAX_GRANTS, Grant, parse_grant, refuse_grant
from ktrdr_vm.egress.grants.store import GrantBook
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.egress.proxy.resolved_addresses import Given
from ktrdr_vm.egress.rules import Rules
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host.clock import boottime
from ktrdr_vm.plan.egress_policy import compile_policy
from ktrdr_vm.plan.guard_interface import GRANT_SLOTS

# Seconds after the end of a grant in which polls end further connections: one may be checked just before the end and
# opened just after it.
LINGER = 3.0


class Granting:
    """`changed` notifies the resolver; `kill_proxy` ends a proxy that does not execute commands, with all its
    connections."""

    def __init__(
        self,
        book: GrantBook,
        rules: Rules,
        sets: AllowSets,
        proxy: ProxyControl,
        given: Given,
        ledger: Ledger,
        *,
        changed: Callable[[], None],
        kill_proxy: Callable[[], None],
    ) -> None:
        self._book = book
        self._rules = rules
        self._sets = sets
        self._proxy = proxy
        self._given = given
        self._ledger = ledger
        self._changed = changed
        self._kill_proxy = kill_proxy
        self._slots: dict[str, str] = {}
        """Grant slot to grant id, also for a while after its end; the longest unused first."""
        self._ended: dict[str, float] = {}
        """Grant slots whose grant has ended, and when."""
        self._poll_until = 0.0
        self._sets_outdated = False

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> Rules:
        """The rules of the profile and those of every valid grant."""
        granted = tuple((grant.id, compile_policy([grant.rule])) for grant in self._book.standing)
        return Rules(self._rules.policy, self._rules.exceptions, granted)

    @property
    def seconds_to_next_end(self) -> float:
        return max(0.0, self._book.next_end - boottime())

    def start(self, *, afresh: bool) -> None:
        """Take over the grants of an earlier guard, before any child of this one serves. `afresh` as in
        `AllowSets.set_grants`.

        KtrdrError if the sets cannot be written.
        """
        for grant in self._book.take_missed():
            self._write("note", grant, "expired")
        for grant in self._book.standing:
            self._take_room(grant.id)
            self._write("note", grant, "holds on", seconds=round(self._book.remaining(grant), 1))
        self._sets.set_grants(self.rules, self._book.standing, afresh=afresh)
        self._proxy.write_maps(self._maps())

    def find_grant(self, slot: str) -> str:
        """The grant that a grant slot carries; empty if there is none."""
        return self._slots.get(slot, "")

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """The operations of the socket protocol."""
        return {
            "grant": self.grant,
            "revoke": lambda request: self.revoke(str(request["id"])),
            "grants": lambda _: self.list(),
        }

    def grant(self, request: dict[str, Any]) -> dict[str, Any]:
        grant = parse_grant(request, boottime())
        standing = {one.id: one for one in self._book.standing}
        refused = refuse_grant(grant.rule, self._rules.exceptions, self._sets.on_link)
        if refused:
            raise ValueError(refused)
        if grant.id in standing and _place(standing[grant.id]) != _place(grant):
            raise ValueError(f"a grant {grant.id} exists for another rule; revoke it first")
        if grant.id not in standing and len(standing) >= MAX_GRANTS:
            raise ValueError(f"{MAX_GRANTS} grants apply already; revoke one first")
        if grant.id not in standing:
            self._take_room(grant.id)
        self._book.add(grant)
        self._write("note", grant, "granted", seconds=request["seconds"])
        self._apply()
        return {"grant": self._row(grant)}

    def revoke(self, grant_id: str) -> dict[str, Any]:
        standing = next((grant for grant in self._book.standing if grant.id == grant_id), None)
        if standing is None:
            return {"revoked": False}
        try:
            self._book.remove(grant_id)
        finally:
            self._end(standing, "revoked")
        return {"revoked": True}

    def list(self) -> dict[str, Any]:
        return {"grants": [self._row(grant) for grant in reversed(self._book.standing)]}

    def _row(self, grant: Grant) -> dict[str, Any]:
        return grant.to_json() | {"seconds": round(self._book.remaining(grant), 3)}

    # -- expiry ------------------------------------------------------------------------------------------------------

    def end_due(self) -> None:
        """End the expired grants. Called at the earliest expiry, and at every poll."""
        for grant in self._book.take_ended():
            self._end(grant, "expired")

    def poll(self) -> None:
        """Called at every poll of the guard: repeat a failed write of the sets, and end connections that were being
        opened at the end of a grant."""
        if self._sets_outdated:
            self._apply()
        if time.monotonic() < self._poll_until:
            self._cut()
        for slot, when in list(self._ended.items()):
            if time.monotonic() - when > LINGER:
                del self._ended[slot]

    def _end(self, grant: Grant, word: str) -> None:
        for slot, holder in self._slots.items():
            if holder == grant.id:
                self._ended[slot] = time.monotonic()
        self._poll_until = time.monotonic() + LINGER
        self._apply()
        self._cut()
        self._write("note", grant, word)

    def _apply(self) -> None:
        self._set_elements()
        maps = self._maps()
        self._proxy.write_maps(maps)
        try:
            self._proxy.load_maps(maps)
            # An address that was allowed by one rule is checked again by the next one.
            self._given.forget()
        except KtrdrError as error:
            self._no_proxy(error)
        self._changed()

    def _set_elements(self) -> None:
        self._sets_outdated = False
        try:
            self._sets.set_grants(self.rules, self._book.standing)
        except KtrdrError as error:
            # The elements expire with the grant. The removal of a revoked grant is repeated until it succeeds.
            self._sets_outdated = True
            self._ledger.write("guard", "note", message=f"the grants' sets cannot be written: {error}"[:300])

    def _cut(self) -> None:
        """End the connections whose grant has ended: by name in its grant slot, by address if no set contains it any
        more."""
        try:
            self._proxy.end_slots(self._ended)
            if self._rules.policy.observe:
                return  # what a grant opened is also open without it
            self._proxy.end_sessions(
                [one for one in self._proxy.list_by_address() if not self._sets.is_open(one.address, one.port)]
            )
        except KtrdrError as error:
            self._no_proxy(error)

    def _no_proxy(self, error: KtrdrError) -> None:
        """Kill the proxy. It is restarted with the maps on disk, and all its connections end: no connection may outlive
        its grant."""
        self._ledger.write("guard", "note", message=f"{error.message}; it is ended and started again"[:300])
        self._kill_proxy()

    # -- grant slots of the proxy ------------------------------------------------------------------------------------

    def _take_room(self, grant_id: str) -> None:
        standing = {grant.id for grant in self._book.standing}
        free = [f"g{number}" for number in range(1, GRANT_SLOTS + 1)]
        free = [slot for slot in free if self._slots.get(slot) not in standing and slot not in self._ended]
        if not free:
            raise ValueError("no grant slot is free, because many grants ended just now; try again in some seconds")
        # A slot that was never used comes first, then the one that is unused for the longest time.
        order = list(self._slots)
        slot = min(free, key=lambda one: order.index(one) if one in self._slots else -1)
        self._slots.pop(slot, None)
        self._slots[slot] = grant_id

    def _maps(self) -> dict[str, dict[str, str]]:
        maps: dict[str, dict[str, str]] = {}
        slots = {holder: slot for slot, holder in self._slots.items()}
        for grant in self._book.standing:
            host = grant.rule.host
            for port, kind in ((80, "http"), (443, "tls")):
                if host and port in grant.rule.ports:
                    file = f"{kind}.granted_suffixes" if host.startswith("*.") else f"{kind}.granted"
                    maps.setdefault(file, {}).setdefault(host.removeprefix("*"), slots[grant.id])
        return maps

    def _write(self, verdict: str, grant: Grant, word: str, **fields: Any) -> None:
        self._ledger.write(
            "grant",
            verdict,
            name=grant.rule.host,
            address=str(grant.rule.cidr or ""),
            ports=list(grant.rule.ports),
            rule=grant.name,
            message=f"{word}: {grant.rule.reason}" if grant.rule.reason else word,
            **fields,
        )


def _place(grant: Grant) -> tuple[str, str, tuple[int, ...]]:
    return grant.rule.host, str(grant.rule.cidr), grant.rule.ports
