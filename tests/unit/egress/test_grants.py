"""Grants as data, and on disk: what a restarted guard takes up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.egress import allow_sets as sets_module
from ktrdr_vm.egress.allow_sets import MAX_LIFE, AllowSets, widest
from ktrdr_vm.egress.grant import MAX_SECONDS, Grant, parse_grant, refuse_grant
from ktrdr_vm.egress.grants.store import GrantBook
from ktrdr_vm.egress.rules import Rules, rules_from_json
from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host.clock import boottime
from ktrdr_vm.plan.egress_policy import EgressPolicy, compile_policy
from ktrdr_vm.plan.guard_interface import ALLOWED_SIZE
from ktrdr_vm.profile.egress_rule import EgressRule

REQUEST = {"id": "g", "rule": {"host": "api.example.com", "ports": [443]}, "seconds": 60, "reason": "to ask"}


def change(**fields: Any) -> dict[str, Any]:
    return {**REQUEST, **fields}


def test_a_request_becomes_a_rule_with_an_end() -> None:
    grant = parse_grant(REQUEST, 1000.0)
    assert grant == Grant("g", EgressRule(host="api.example.com", ports=(443,), reason="to ask"), 1060.0)
    assert parse_grant({**grant.to_json(), "seconds": 60}, 1000.0) == grant


@pytest.mark.parametrize(
    "wrong",
    [
        change(id=""),
        change(id="../x"),
        change(id="a b"),
        change(id="x" * 65),
        change(id=7),
        change(seconds=0),
        change(seconds=-1),
        change(seconds=True),
        change(seconds="60"),
        change(seconds=float("nan")),
        change(seconds=float("inf")),
        change(seconds=MAX_SECONDS + 1),
        change(reason="two\nlines"),
        change(reason=None),
        change(rule=None),
        change(rule={}),
        change(rule={"host": "a.example", "cidr": "198.51.100.7/32"}),
        change(rule={"host": "a.example", "ports": []}),
        change(rule={"host": "a.example", "ports": [0]}),
        change(rule={"host": "a.example", "ports": [True]}),
        change(rule={"host": "a.example", "ports": [65536]}),
        change(rule={"host": "a.example", "ports": list(range(1, 66))}),
        change(rule={"host": "a.example", "more": 1}),
        change(rule={"host": "a.example\nset server x"}),
        change(rule={"host": "*"}),
        change(rule={"host": "198.51.100.7"}),
        change(rule={"cidr": "0.0.0.0/0"}),
        change(rule={"cidr": "::/0"}),
        change(rule={"cidr": 7}),
        [],
        None,
    ],
)
def test_what_is_no_grant_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError):
        parse_grant(wrong, 0.0)


@given(st.recursive(st.none() | st.integers() | st.text() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "rule", "seconds", "reason", "host", "cidr", "ports"]), inner)))  # fmt: skip
def test_any_request_is_a_grant_or_refused(data: Any) -> None:
    try:
        parse_grant(data, 0.0)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("cidr", "ports", "refused"),
    [
        ("198.51.100.7/32", (5432,), False),
        ("192.168.1.1/32", (443,), False),
        ("192.168.1.1/32", (443, 22), True),
        ("192.168.1.2/32", (443,), True),
        ("192.168.1.0/24", (443,), True),
        ("172.0.0.0/8", (443,), True),
        ("169.254.169.254/32", (80,), True),
    ],
)
def test_reserved_addresses_are_the_owners(cidr: str, ports: tuple[int, ...], refused: bool) -> None:
    rule = EgressRule(cidr=IPv4Network(cidr), ports=ports)
    assert bool(refuse_grant(rule, [(IPv4Network("192.168.1.1/32").network_address, 443)])) == refused


# -- on disk -----------------------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def book(path: Path, clock: Callable[[], float], boot: str = "one") -> GrantBook:
    return GrantBook(path / "grants.json", clock, boot)


def test_a_grant_that_has_not_ended_is_taken_up_and_one_that_has_is_not(tmp_path: Path) -> None:
    clock = Clock()
    first = book(tmp_path, clock)
    for name, seconds in (("short", 10), ("long", 100), ("revoked", 100)):
        first.add(parse_grant(change(id=name, seconds=seconds), clock.now))
    assert [grant.id for grant in first.standing] == ["long", "revoked", "short"]
    assert first.next_end == 1010.0
    assert first.remove("revoked") is not None and first.remove("revoked") is None
    clock.now += 10
    assert [grant.id for grant in book(tmp_path, clock).standing] == ["long"]
    assert [grant.id for grant in first.take_ended()] == ["short"]
    assert [grant.id for grant in first.standing] == ["long"]
    assert book(tmp_path, clock).take_missed() == [], "its end was told"
    assert (tmp_path / "grants.json").stat().st_mode & 0o777 == 0o600


def test_a_grant_of_another_boot_has_ended(tmp_path: Path) -> None:
    """The clock begins anew with the host: a moment of before would lie far ahead."""
    book(tmp_path, Clock()).add(parse_grant(REQUEST, 1000.0))
    assert len(book(tmp_path, Clock()).standing) == 1
    after = book(tmp_path, Clock(), "two")
    assert after.standing == () and [grant.id for grant in after.take_missed()] == ["g"]


def test_what_ended_while_no_guard_ran_is_told_once(tmp_path: Path) -> None:
    clock = Clock()
    first = book(tmp_path, clock)
    for name, seconds in (("short", 10), ("long", 100)):
        first.add(parse_grant(change(id=name, seconds=seconds), clock.now))
    clock.now += 10
    again = book(tmp_path, clock)
    assert [grant.id for grant in again.take_missed()] == ["short"] and again.take_missed() == []
    third = book(tmp_path, clock)
    assert third.take_missed() == [] and third.revision == again.revision
    assert [grant.id for grant in third.standing] == ["long"]


def test_the_time_of_a_grant_is_counted_from_the_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By CLOCK_BOOTTIME, which nobody can set, and which goes on while the host is suspended."""
    seconds = {time.CLOCK_BOOTTIME: 1000.0}
    monkeypatch.setattr(time, "clock_gettime", seconds.__getitem__)
    made = GrantBook(tmp_path / "grants.json", boot_id="one")
    made.add(parse_grant(REQUEST, boottime()))
    seconds[time.CLOCK_BOOTTIME] += 59
    assert made.take_ended() == [] and made.remaining(made.standing[0]) == 1
    seconds[time.CLOCK_BOOTTIME] += 1
    assert [grant.id for grant in made.take_ended()] == ["g"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"boot_id": "one"}', '{"boot_id": "one", "grants": [{}, 7, null]}', "\x00\xff"]
)
def test_a_damaged_file_opens_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "grants.json").write_text(text)
    assert book(tmp_path, Clock()).standing == ()


def test_an_end_that_no_grant_can_have_is_not_believed(tmp_path: Path) -> None:
    rows = [{**REQUEST, "ends": end} for end in (1e12, float("inf"), "x")]
    (tmp_path / "grants.json").write_text(json.dumps({"boot_id": "one", "grants": rows}))
    assert book(tmp_path, Clock()).standing == ()


def test_a_grant_that_cannot_be_written_does_not_hold_and_a_revoked_one_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = book(tmp_path, Clock())
    made.add(parse_grant(change(id="old"), 1000.0))

    def full(*_: object) -> None:
        raise HostError("no space", where="x", hint="x")

    monkeypatch.setattr("ktrdr_vm.egress.grants.store.write_durably", full)
    with pytest.raises(HostError):
        made.add(parse_grant(change(id="new"), 1000.0))
    assert [grant.id for grant in made.standing] == ["old"]
    with pytest.raises(HostError):
        made.remove("old")
    assert made.standing == ()


# -- in the rules and the sets -----------------------------------------------------------------------------------------


def granted(*rules: EgressRule, ends: float = 1100.0) -> tuple[Rules, list[Grant]]:
    grants = [Grant(f"g{number}", rule, ends) for number, rule in enumerate(rules)]
    allowed = compile_policy([EgressRule(host="git.example", ports=(22,))])
    return Rules(allowed, frozenset(), tuple((grant.id, compile_policy([grant.rule])) for grant in grants)), grants


def test_the_profiles_own_rule_comes_before_a_grant() -> None:
    rules, _ = granted(EgressRule(host="git.example", ports=(22, 443)), EgressRule(host="new.example", ports=(9100,)))
    assert (rules.rule("git.example"), rules.rule("new.example"), rules.rule("x.example")) == ("name", "grant:g1", "")
    assert rules.ports("git.example") == (22, 443)
    assert (
        rules_from_json(rules.policy.to_json(), [], [[name, policy.to_json()] for name, policy in rules.grants])
        == rules
    )


def test_a_grants_elements_end_with_it_and_leave_the_profiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(sets_module, "load_ruleset", lambda text, _namespace: texts.append(text))
    rules, grants = granted(
        EgressRule(host="git.example", ports=(22, 9100)),
        EgressRule(cidr=IPv4Network("203.0.113.0/24"), ports=(443,)),
        ends=1020.0,
    )
    sets = AllowSets("t", Rules(EgressPolicy()), clock=lambda: 1000.0)
    sets.set_grants(rules, grants)
    assert "granted_ranges { 203.0.113.0/24 . 443 timeout 20000ms }" in texts[-1]
    sets.allow("git.example", ["198.51.100.22"], 300)
    assert "t names { 198.51.100.22 . 22 timeout 330000ms }" in texts[-1]
    assert "t granted_names { 198.51.100.22 . 9100 timeout 20000ms }" in texts[-1]
    assert (sets.find_grant("198.51.100.22", 22), sets.find_grant("198.51.100.22", 9100)) == ("", "g0")
    assert (sets.find_grant("203.0.113.9", 443), sets.find_grant("203.0.113.9", 80)) == ("g1", "")
    sets.set_grants(granted()[0], [])
    assert all(line.startswith("flush set inet t granted_") for line in texts[-1].splitlines())
    assert [sets.is_open("198.51.100.22", port) for port in (22, 9100)] == [True, False]
    assert (sets.find_past_grant("198.51.100.22", 9100), sets.find_past_grant("203.0.113.9", 443)) == ("g0", "g1")


def test_a_flow_has_its_grant_however_many_addresses_were_opened_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets_module, "load_ruleset", lambda *_: None)
    rules, grants = granted(EgressRule(host="*.cdn.example", ports=(9100,)))
    sets = AllowSets("t", Rules(EgressPolicy()), clock=lambda: 1000.0)
    sets.set_grants(rules, grants)
    for number in range(sets_module.PAST + 10):
        sets.allow(f"n{number}.cdn.example", [f"198.51.{number // 200}.{number % 200}"], 60)
    assert sets.find_past_grant("198.51.0.0", 9100) == "g0"


def test_a_guest_that_fills_a_grant_keeps_no_other_one_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more elements than a set may have, nft refuses each change of the grants: a revoked one would stay."""
    texts: list[str] = []
    monkeypatch.setattr(sets_module, "load_ruleset", lambda text, _namespace: texts.append(text))
    clock = Clock()
    rules, grants = granted(
        EgressRule(host="*.cdn.example", ports=(9100,)), EgressRule(host="b.example", ports=(22,)), ends=100_000.0
    )
    sets = AllowSets("t", Rules(EgressPolicy()), clock=clock)
    sets.set_grants(rules, grants)
    sets.allow("b.example", ["198.51.100.1"], 60)
    numbers = iter(range(2**16))

    def fill(names: int) -> None:
        for _ in range(names):
            number = next(numbers)
            sets.allow(f"n{number}.cdn.example", [f"11.0.{number >> 8}.{number & 255}"], 60)

    fill(ALLOWED_SIZE - 1)
    with pytest.raises(ProvisionError, match="are open already"):
        fill(1)
    sets.set_grants(granted(grants[0].rule, ends=100_000.0)[0], grants[:1])
    added = [line for line in texts[-1].splitlines() if line.startswith("add element inet t granted_names")]
    assert len(added) == ALLOWED_SIZE - 1 and not any("198.51.100.1" in line for line in added)
    assert sets.find_grant("198.51.100.1", 22) == ""
    clock.now += MAX_LIFE + 1
    fill(ALLOWED_SIZE)
    assert len(sets._granted) == ALLOWED_SIZE


def test_a_grant_that_is_given_again_for_less_ends_earlier_in_the_table_too(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(sets_module, "load_ruleset", lambda text, _namespace: texts.append(text))
    rules, grants = granted(EgressRule(host="b.example", ports=(22,)), ends=1600.0)
    sets = AllowSets("t", Rules(EgressPolicy()), clock=lambda: 1000.0)
    sets.set_grants(rules, grants)
    sets.allow("b.example", ["198.51.100.1"], 60)
    assert "198.51.100.1 . 22 timeout 600000ms" in texts[-1]
    sets.set_grants(rules, [Grant("g0", grants[0].rule, 1060.0)])
    assert "198.51.100.1 . 22 timeout 60000ms" in texts[-1]


def test_of_ranges_that_lie_in_each_other_the_widest_stands() -> None:
    elements = [
        "198.51.100.7/32 . 443",
        "198.51.100.0/24 . 443",
        "198.51.0.0/16 . 22",
        "198.51.100.0/25 . 443",
        "198.51.100.7/32 . 22",
    ]
    assert [element for _, element in widest(("t", element) for element in elements)] == [
        "198.51.0.0/16 . 22",
        "198.51.100.0/24 . 443",
    ]


# -- connections that outlive an address of their name -----------------------------------------------------------------


def test_what_was_not_renewed_is_kept_for_connections_that_stand_and_for_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(sets_module, "load_ruleset", lambda text, _namespace: texts.append(text))
    clock = Clock()
    sets = AllowSets("t", granted()[0], clock=clock)
    sets.allow("git.example", ["198.51.100.22"], 60)
    assert sets.late == set()
    clock.now += 70
    assert sets.late == {("198.51.100.22", 22)}
    for _ in range(24 * 180):  # a day of one connection, looked at more seldom than the guard does
        sets.keep(sets.late)
        assert sets.is_open("198.51.100.22", 22)
        clock.now += 20
    sets.keep(sets.late)
    assert "inet t kept { 198.51.100.22 . 22 timeout 60000ms }" in texts[-1]
    clock.now += 60
    assert not sets.is_open("198.51.100.22", 22)
    assert sets.late == set()
