"""The ledger, the rules, the sets and the proxy's log: what the guard is made of, without its sockets."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.egress import allow_sets as sets_module
from ktrdr_vm.egress import ledger as ledger_module
from ktrdr_vm.egress import table_watch
from ktrdr_vm.egress.allow_sets import AllowSets
from ktrdr_vm.egress.flow_log import parse_proxy_line
from ktrdr_vm.egress.ledger import LINES_PER_SECOND, Ledger, older, read_ledger
from ktrdr_vm.egress.rules import Rules, rules_from_json
from ktrdr_vm.egress.table_watch import DropCounts, TableWatch
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.plan.egress_policy import compile_policy
from ktrdr_vm.profile.egress_rule import EgressRule

POLICY = compile_policy(
    (
        EgressRule(host="allowed.example", ports=(80, 443)),
        EgressRule(host="git.example", ports=(443, 22, 9418)),
        EgressRule(host="*.wild.example", ports=(443, 8443)),
    )
)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- ledger ------------------------------------------------------------------------------------------------------------


def test_lines_have_a_time_and_whose_they_are_and_nobody_else_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    ledger = Ledger(path, "one")
    ledger.write("dns", "deny", name="\x1b[31mé\u202e")
    ledger.close()
    row = read(path)[0]
    assert row["instance_id"] == "one" and row["time"].endswith("Z")
    assert path.read_text().isascii() and "\x1b" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_comes_too_fast_is_counted_and_not_lost(tmp_path: Path) -> None:
    clock = [100.0]
    path = tmp_path / "egress.jsonl"
    ledger = Ledger(path, "one", lambda: clock[0])
    for _ in range(LINES_PER_SECOND + 500):
        ledger.write("dns", "deny", name="x")
    ledger.write("drop", "deny", count=40)
    clock[0] += 1.1
    ledger.write("dns", "deny", name="after")
    ledger.close()
    rows = read(path)
    assert len(rows) == LINES_PER_SECOND + 3
    suppressed = {(row["kind"], row["name"], row["count"]) for row in rows if row.get("rule") == "suppressed"}
    assert suppressed == {("dns", "x", 500)}
    assert [row["count"] for row in rows if row["kind"] == "drop"] == [40]
    assert rows[-1]["name"] == "after"


def test_the_file_is_bounded_and_one_older_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_BYTES", 2000)
    clock = [0.0]
    path = tmp_path / "egress.jsonl"
    ledger = Ledger(path, "one", lambda: clock[0])
    for number in range(200):
        clock[0] += 2
        ledger.write("dns", "allow", name=f"n{number}")
    ledger.close()
    older = path.with_name("egress.jsonl.1")
    totals = path.with_name("egress.jsonl.totals")
    assert sorted(tmp_path.iterdir()) == [path, older, totals]
    assert path.stat().st_size < 2300 and older.stat().st_size < 2300
    assert older.stat().st_mode & 0o777 == 0o600
    assert totals.stat().st_mode & 0o777 == 0o600
    names = [row["name"] for row in (*read(older), *read(path)) if row["kind"] == "dns"]
    assert names == [f"n{number}" for number in range(200 - len(names), 200)]


def step(steps: Iterator[Callable[[], object]]) -> Callable[[float], None]:
    """Instead of a pause, the next step."""

    def take(_seconds: float) -> None:
        next(steps)()

    return take


def test_who_follows_sees_every_line_across_every_change_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the file changes twice between two looks, and when a line is half written."""
    monkeypatch.setattr(ledger_module, "MAX_BYTES", 2000)
    clock = [0.0]
    folder = tmp_path / "instance"
    folder.mkdir()
    path = folder / "egress.jsonl"
    ledger = Ledger(path, "one", lambda: clock[0])
    written = 0

    def write(count: int) -> None:
        nonlocal written
        for _ in range(count):
            clock[0] += 2
            ledger.write("dns", "allow", name=f"n{written}")
            written += 1

    def end() -> None:
        ledger.close()
        shutil.rmtree(folder)

    # A look finds: nothing new; a few; one change; a line's half; two changes at once (13 lines fill a file); the end.
    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: None,
            lambda: write(3),
            lambda: write(20),
            lambda: write(1),
            lambda: write(22),
            end,
        ]
    )
    write(40)
    rows = list(read_ledger(path, follow=True, pause=step(steps)))
    seen = [row["name"] for row in rows if row["kind"] == "dns"]
    assert seen == [f"n{number}" for number in range(written - len(seen), written)]
    assert len(seen) > 60


ROW = {"time": "2026-01-01T00:00:00.000Z", "instance_id": "one", "kind": "dns", "verdict": "deny"}


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "x" / "egress.jsonl"
    path.parent.mkdir()
    first, second = (json.dumps(ROW | {"count": number}) for number in (1, 2))
    path.write_text(f"{first}\n{second[:20]}")
    halves: Iterator[Callable[[], object]] = iter(
        [lambda: path.open("a").write(f"{second[20:]}\n"), lambda: shutil.rmtree(path.parent)]
    )
    assert [row["count"] for row in read_ledger(path, follow=True, pause=step(halves))] == [1, 2]


def test_without_following_what_is_kept_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    first, second = (json.dumps(ROW | {"count": number}) for number in (1, 2))
    older(path).write_text(f"{first}\n")
    path.write_text(f"{second}\n{first[:9]}")
    assert [row["count"] for row in read_ledger(path, follow=False)] == [1, 2]
    with pytest.raises(FileNotFoundError):
        list(read_ledger(tmp_path / "none", follow=False))


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ports", "other"),
    [
        ("allowed.example", (80, 443), ()),
        ("git.example", (22, 443, 9418), (22, 9418)),
        ("a.wild.example", (443, 8443), (8443,)),
        ("wild.example", (), ()),
        (".wild.example", (), ()),
        ("evilwild.example", (), ()),
        ("x.allowed.example", (), ()),
        ("", (), ()),
    ],
)
def test_ports_of_a_name(name: str, ports: tuple[int, ...], other: tuple[int, ...]) -> None:
    rules = Rules(POLICY)
    assert (rules.ports(name), rules.other_ports(name)) == (ports, other)


def test_rules_survive_the_way_through_json() -> None:
    read_back = rules_from_json(json.loads(json.dumps(POLICY.to_json())), [["192.168.1.1", 443]])
    assert read_back == Rules(POLICY, frozenset({(IPv4Address("192.168.1.1"), 443)}))


# -- sets --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been given to nft."""
    texts: list[str] = []
    monkeypatch.setattr(sets_module, "load_ruleset", lambda text, _namespace: texts.append(text))
    return texts


def test_what_is_changed_together_is_one_transaction_of_each_table(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[tuple[str, str]] = []
    monkeypatch.setattr(sets_module, "load_ruleset", lambda text, namespace: texts.append((namespace, text)))
    sets = AllowSets("ktrdr_x", Rules(POLICY), "inside")
    with sets.together():
        sets.set_upstreams(["192.0.2.53"])
        sets.set_on_link([IPv4Network("198.51.100.0/24")])
        sets.allow("git.example", ["203.0.113.1"], 60)
        assert texts == []
    (outside, on_host), (inside, in_namespace) = texts
    assert (outside, inside) == ("", "inside")
    assert "upstreams { 192.0.2.53 }" in on_host and "on_link { 198.51.100.0/24 }" in on_host
    assert "upstreams" not in in_namespace and "on_link { 198.51.100.0/24 }" in in_namespace
    assert "names { 203.0.113.1 . 22 timeout" in in_namespace
    sets.set_upstreams(["192.0.2.54"])
    assert len(texts) == 3


def test_what_could_not_be_loaded_together_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_text: str, _namespace: str) -> None:
        raise ProvisionError("nft failed", where="nft", hint="try again")

    sets = AllowSets("ktrdr_x", Rules(POLICY))
    monkeypatch.setattr(sets_module, "load_ruleset", refuse)
    with pytest.raises(ProvisionError), sets.together():
        sets.set_upstreams(["192.0.2.53"])
        sets.set_on_link([IPv4Network("198.51.100.0/24")])
    assert sets.is_on_link(IPv4Address("198.51.100.7"))
    texts: list[str] = []
    monkeypatch.setattr(sets_module, "load_ruleset", lambda text, _namespace: texts.append(text))
    sets.set_upstreams(["192.0.2.53"])
    sets.set_on_link([IPv4Network("198.51.100.0/24")])
    assert "192.0.2.53" in texts[0] and "198.51.100.0/24" in texts[1]


def test_the_writer_opens_other_ports_only_and_renews_them(loaded: list[str]) -> None:
    sets = AllowSets("ktrdr_x", Rules(POLICY))
    assert sets.allow("git.example", ["198.51.100.1"], 300) == ["198.51.100.1"]
    lines = loaded[0].splitlines()
    assert [line.split()[0] for line in lines] == ["add", "delete", "add"] * 2
    assert {line.split("{ ")[1].split(" timeout")[0].rstrip(" }") for line in lines} == {
        "198.51.100.1 . 22",
        "198.51.100.1 . 9418",
    }
    assert all("inet ktrdr_x names" in line for line in lines)
    assert sets.allow("allowed.example", ["198.51.100.2"], 300) == ["198.51.100.2"]
    assert len(loaded) == 1, "80 and 443 are judged by name"
    assert sets.owners == {"198.51.100.1": "git.example", "198.51.100.2": "allowed.example"}


@pytest.mark.parametrize(("ttl", "life"), [(0, 90), (-5, 90), (60, 90), (300, 330), (10**9, 3630)])
def test_the_life_of_an_element_is_bounded(loaded: list[str], ttl: int, life: int) -> None:
    AllowSets("t", Rules(POLICY), clock=lambda: 7.0).allow("git.example", ["198.51.100.1"], ttl)
    assert f"timeout {life}000ms" in loaded[0]


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "224.0.0.1"])
def test_the_writer_does_not_believe_the_resolver(loaded: list[str], address: str) -> None:
    sets = AllowSets("t", Rules(POLICY))
    assert sets.allow("git.example", [address], 60) == []
    assert sets.allow("evil.example", ["198.51.100.66"], 60) == []
    assert (loaded, sets.owners) == ([], {})


@pytest.mark.parametrize("address", ["198.51.100.1 . 22 }; flush ruleset", "::1", "x", "", "1.2.3", "1.2.3.4/0"])
def test_what_is_no_address_never_reaches_nft(loaded: list[str], address: str) -> None:
    with pytest.raises(ValueError):
        AllowSets("t", Rules(POLICY)).allow("git.example", [address], 60)
    assert loaded == []


def test_an_exception_of_the_owner_goes_into_its_own_set(loaded: list[str]) -> None:
    endpoints = frozenset((IPv4Address("192.168.1.1"), port) for port in (22, 443, 9418))
    AllowSets("t", Rules(POLICY, endpoints), clock=lambda: 7.0).allow("git.example", ["192.168.1.1"], 60)
    assert "inet t lan_names" in loaded[0] and "inet t names" not in loaded[0]
    assert {"192.168.1.1 . 443 timeout 90000ms"} <= {
        line.split("{ ")[1].rstrip(" }") for line in loaded[0].splitlines()
    }


def test_drops_are_news_once() -> None:
    counts = {"packets": 3}

    def listed() -> list[dict[str, Any]]:
        element = {
            "elem": {
                "val": {"concat": ["203.0.113.1", "tcp", 22]},
                "counter": {"packets": counts["packets"], "bytes": 0},
            }
        }
        protocol = {"elem": {"val": {"concat": ["203.0.113.1", "icmp"]}, "counter": {"packets": 1, "bytes": 0}}}
        return [
            {"set": {"name": "denied", "elem": [element]}},
            {"set": {"name": "denied_protocols", "elem": [protocol]}},
            {"counter": {"name": "spoofed", "packets": 2}},
            {"counter": {"name": "not_ipv4", "packets": 0}},
        ]

    counts_before = DropCounts()
    first = counts_before.read(listed())
    assert {(drop.address, drop.protocol, drop.port, drop.rule, drop.count) for drop in first} == {
        ("203.0.113.1", "tcp", 22, "destination", 3),
        ("203.0.113.1", "icmp", 0, "destination", 1),
        ("", "", 0, "spoofed", 2),
    }
    assert counts_before.read(listed()) == []
    counts["packets"] = 10
    assert [drop.count for drop in counts_before.read(listed())] == [7]


def test_what_was_dropped_is_written_once_by_all_guards_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counters outlive a guard. They begin anew when it is loaded, which its handle or the record of it tells."""
    handle, packets, expected = 7, 3, tmp_path / "ruleset.expected"
    expected.write_text("{}")
    ledger = Ledger(tmp_path / "egress.jsonl", "one")

    def listed(_table: str, namespace: str) -> list[dict[str, Any]]:
        count = {"counter": {"name": "spoofed", "packets": packets if namespace else 0}}
        return [{"table": {"name": "t", "handle": handle}}, count]

    monkeypatch.setattr(table_watch, "list_table", listed)

    def poll_anew() -> list[int]:
        """A guard begins, and looks twice."""
        watch = TableWatch(tmp_path, "t", "ns", expected, AllowSets("t", Rules(POLICY)), ledger)
        before = len(read(tmp_path / "egress.jsonl"))
        watch.poll()
        watch.poll()
        return [row["count"] for row in read(tmp_path / "egress.jsonl")[before:]]

    assert poll_anew() == [3] and poll_anew() == []
    packets = 5
    assert poll_anew() == [2] and poll_anew() == []
    handle, packets = 8, 5
    assert poll_anew() == [5] and poll_anew() == []
    os.utime(expected, ns=(1, 1))
    assert poll_anew() == [5] and poll_anew() == []
    assert (tmp_path / "drop.counts").stat().st_mode & 0o777 == 0o600
    (tmp_path / "drop.counts").write_text('{"loaded": 1, "counts": 5}')
    assert poll_anew() == [5], "a damaged file counts once more, and hides nothing"


def test_drops_of_one_table_are_not_lost_with_the_listing_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = True

    def listed(_table: str, namespace: str) -> list[dict[str, Any]]:
        if namespace and fails:
            raise ProvisionError("nft cannot list the table", where="t", hint="x")
        return [{"table": {"name": "t", "handle": 1}}, {"counter": {"name": "proxy_reserved", "packets": 4}}]

    monkeypatch.setattr(table_watch, "list_table", listed)
    ledger, sets = Ledger(tmp_path / "egress.jsonl", "one"), AllowSets("t", Rules(POLICY))
    watch = TableWatch(tmp_path, "t", "ns", tmp_path / "ruleset.expected", sets, ledger)
    watch.poll()
    assert [row["kind"] for row in read(tmp_path / "egress.jsonl")] == ["guard"]
    fails = False
    watch.poll()
    assert [row["count"] for row in read(tmp_path / "egress.jsonl") if row["kind"] == "drop"] == [4, 4]


# -- the proxy's log ---------------------------------------------------------------------------------------------------

LINE = '{"f":"tls","n":"allowed.example","p":443,"u":517,"d":3000,"t":"--","a":"198.51.100.1","v":"allow","m":12}'


def test_a_line_of_the_proxy() -> None:
    assert parse_proxy_line(LINE.encode()) == {
        "kind": "tls", "verdict": "allow", "name": "allowed.example", "address": "198.51.100.1", "port": 443, "rule": "name",
        "bytes_out": 517, "bytes_in": 3000, "ms": 12, "grant_slot": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"v": "name"}, {"verdict": "deny", "rule": "name"}),
        ({"v": "no-hello", "n": "-"}, {"verdict": "deny", "rule": "no-hello", "name": ""}),
        ({"v": "-", "n": "-"}, {"verdict": "deny", "rule": "request"}),
        ({"f": "other", "n": "-"}, {"kind": "tcp", "verdict": "allow", "rule": "address"}),
        ({"t": "SC"}, {"verdict": "allow", "message": "the destination did not answer"}),
        ({"v": "Allow"}, {"verdict": "deny"}),
        ({"g": "g7"}, {"grant_slot": "g7"}),
        ({"n": "x" * 9999}, {"name": "x" * 254}),
    ],
)
def test_verdicts(change: dict[str, Any], wanted: dict[str, Any]) -> None:
    fields = parse_proxy_line(json.dumps(json.loads(LINE) | change).encode())
    assert fields is not None and wanted.items() <= fields.items()


@given(st.one_of(st.binary(max_size=300), st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("fnpudtavmws"), inner)).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_any_line_is_survived(line: bytes) -> None:
    fields = parse_proxy_line(line)
    assert fields is None or {"kind", "verdict", "name", "address", "port", "rule"} <= fields.keys()
