"""What the proxy is told of the resolver's answers: how long, how much, and of what names. That it decides by it is a
lab test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest

from ktrdr_vm.egress.proxy.resolved_addresses import LONGEST, MOST, PAUSE, Given
from ktrdr_vm.errors import ProvisionError


class Proxy:
    """Holds the list as HAProxy would; silent when told so."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.asked = 0
        self.silent = False

    def write_maps(self, maps: Mapping[str, Mapping[str, str]], files: Iterable[str]) -> None:
        assert not maps and list(files)
        self.held.clear()

    def change_list(self, verb: str, _file: str, entries: Sequence[str]) -> None:
        self._answer()
        (self.held.update if verb == "add" else self.held.difference_update)(entries)

    def clear_list(self, _file: str) -> None:
        self._answer()
        self.held.clear()

    def _answer(self) -> None:
        self.asked += 1
        if self.silent:
            raise ProvisionError("the proxy does not answer", where="here", hint="look")


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def given(proxy: Proxy, clock: list[float]) -> Given:
    return Given(proxy, lambda: clock[0])  # type: ignore[arg-type]


def test_it_lives_as_long_as_the_answer_and_a_new_answer_makes_it_longer(
    given: Given, proxy: Proxy, clock: list[float]
) -> None:
    given.learn("a.example", ["192.0.2.1", "192.0.2.2"], 10)
    assert proxy.held == {"a.example@192.0.2.1", "a.example@192.0.2.2"}
    clock[0] += 9
    given.learn("a.example", ["192.0.2.1"], 10)
    clock[0] += 2
    given.poll()
    assert proxy.held == {"a.example@192.0.2.1"}
    clock[0] += 9
    given.poll()
    assert proxy.held == set()


@pytest.mark.parametrize(("ttl", "lives"), [(0, 1), (-5, 1), (10**9, LONGEST)])
def test_an_answers_life_is_bounded_both_ways(
    given: Given, proxy: Proxy, clock: list[float], ttl: int, lives: int
) -> None:
    given.learn("a.example", ["192.0.2.1"], ttl)
    clock[0] += lives - 0.5
    given.poll()
    assert proxy.held
    clock[0] += 1
    given.poll()
    assert not proxy.held


def test_a_day_of_fresh_names_holds_no_more_than_its_bound(given: Given, proxy: Proxy, clock: list[float]) -> None:
    """A wildcard and a guest that makes up names under it; what is full has room again when answers have ended."""
    for second in range(24 * 60):
        for number in range(3):
            given.learn(f"n{second}-{number}.wild.example", ["192.0.2.1", "192.0.2.2"], 3600)
        clock[0] += 60
        given.poll()
        assert len(proxy.held) <= MOST
    assert len(proxy.held) > 0
    clock[0] += LONGEST
    given.poll()
    assert not proxy.held


@pytest.mark.parametrize(
    "name", ["", "a b", "a;shutdown sessions server x/y", "a\nclear acl x", "a\\x", "A.example", "é.example", "a" * 254]
)
def test_a_name_that_could_be_a_command_is_not_told(given: Given, proxy: Proxy, name: str) -> None:
    """The resolver reads the guest's bytes, so it may be the guest's. Such a name is asked for each time."""
    given.learn(name, ["192.0.2.1"], 60)
    assert proxy.asked == 0 and not proxy.held


def test_a_proxy_that_does_not_answer_is_left_alone_for_a_while(given: Given, proxy: Proxy, clock: list[float]) -> None:
    """Each question of the guest would wait a second for it. What it holds it is told to drop when it answers again."""
    given.learn("a.example", ["192.0.2.1"], 1)
    proxy.silent = True
    clock[0] += 1
    given.poll()
    asked = proxy.asked
    for _ in range(5):
        given.learn("b.example", ["192.0.2.2"], 60)
        given.poll()
    assert proxy.asked == asked
    proxy.silent = False
    clock[0] += PAUSE
    given.poll()
    assert not proxy.held


def test_forgetting_is_not_put_off(given: Given, proxy: Proxy) -> None:
    """A grant's end waits for nothing: who asks hears that the proxy did not take it, and ends it."""
    given.learn("a.example", ["192.0.2.1"], 60)
    proxy.silent = True
    given.learn("b.example", ["192.0.2.2"], 60)
    with pytest.raises(ProvisionError):
        given.forget()
    proxy.silent = False
    given.forget()
    assert not proxy.held


def test_a_proxy_that_starts_holds_nothing_and_learns_anew(given: Given, proxy: Proxy) -> None:
    given.learn("a.example", ["192.0.2.1"], 60)
    given.proxy_starts()
    assert not proxy.held
    given.learn("a.example", ["192.0.2.1"], 60)
    assert proxy.held == {"a.example@192.0.2.1"}
