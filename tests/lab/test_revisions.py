"""Revisions on a running guard: each change of the grants is one, lines carry them, and a restarted or killed guard
goes on. No VM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from laboratory.lab import Lab
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.ledger import read_kept
from ktrdr_vm.egress.revision import parse_revision, read_revision
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.journal import is_locked
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.profile.egress_rule import EgressRule

ALLOWED = [{"host": "allowed.test.lab", "ports": [443]}]
RULE = EgressRule(host="other.test.lab", ports=(443,))


@pytest.fixture
def guest(lab: Lab) -> Iterator[NamespaceGuest]:
    with NamespaceGuest(lab.home, ALLOWED) as made:
        yield made


def test_a_grant_its_expiry_and_its_revocation_are_revisions_in_the_ledger(guest: NamespaceGuest) -> None:
    guard = GuardClient(guest.paths.guard)
    seen: list[str] = []

    def note() -> str:
        seen.append(guard.find_revision())
        assert read_revision(guest.paths.guard) == seen[-1]
        return seen[-1]

    first = parse_revision(note())
    assert first.plan == guest.plan.digest[:16] and first.grants == 0
    guest.lookup("other.test.lab")
    guard.flush()
    guard.grant("g1", RULE, 60)
    note()
    guest.lookup("other.test.lab")
    guard.revoke("g1")
    note()
    guard.grant("g2", RULE, 1)
    note()
    wait_until(lambda: guard.find_revision() != seen[-1], "the expiry of a grant")
    note()
    assert len(set(seen)) == 5 and {parse_revision(one).incarnation for one in seen} == {first.incarnation}
    guard.flush()
    rows = read_kept(guest.paths.ledger)
    assert all(row["revision"] in seen for row in rows)
    asked = [
        (row["verdict"], row["revision"])
        for row in rows
        if row["kind"] == "dns" and row.get("name") == "other.test.lab"
    ]
    assert asked == [("deny", seen[0]), ("allow", seen[1])]
    said = [(row["message"], row["revision"]) for row in rows if row["kind"] == "grant"]
    assert said == [("granted", seen[1]), ("revoked", seen[2]), ("granted", seen[3]), ("expired", seen[4])]


def test_a_killed_guard_goes_on_with_the_revision_and_a_dead_one_says_none(guest: NamespaceGuest) -> None:
    guard = GuardClient(guest.paths.guard)
    guard.grant("g1", RULE, 600)
    before = guard.find_revision()
    # Its children end with it. It has no arguments any more before its lock is released.
    os.kill(int(guard.status()["pid"]), signal.SIGKILL)
    lock = guest.paths.guard / "guard.lock"
    wait_until(lambda: not find_guards(guest.paths.guard) and not is_locked(lock), "the end of the guard")
    with pytest.raises(ProvisionError):
        guard.find_revision()
    (guest.paths.guard / "deadlines.json").write_text("{")
    guest.guard.create()
    assert guard.find_revision() == before
    assert guest.read_ledger(rule="deadlines") and all(row["revision"] for row in guest.read_ledger())
    assert guard.follow_plan("f" * 64) != before and parse_revision(guard.find_revision()).plan == "f" * 16


def test_a_network_that_is_made_anew_is_another_incarnation(guest: NamespaceGuest) -> None:
    before = parse_revision(GuardClient(guest.paths.guard).find_revision())
    guest.guard.remove()
    guest.guard.create()
    assert parse_revision(GuardClient(guest.paths.guard).find_revision()).incarnation != before.incarnation


def test_a_guest_that_puts_a_revision_into_its_questions_writes_none(guest: NamespaceGuest) -> None:
    guard = GuardClient(guest.paths.guard)
    now = guard.find_revision()
    for name in (f"{now}.test.lab", "revision.test.lab", 'a","revision":"0.test.lab'):
        guest.lookup(name)
    guard.flush()
    assert {row["revision"] for row in read_kept(guest.paths.ledger)} == {now}
