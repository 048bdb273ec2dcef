"""What the guard holds for its proxy: in memory and in no file, for the VM that it was given for, and for passed gates
only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.egress import link as link_module
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.egress.link import Link
from ktrdr_vm.egress.proxy.control import ProxyControl
from ktrdr_vm.egress.proxy.credentials import Brokers
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.plan.guard_interface import GRANT_SLOTS, OPEN, VALUES
from ktrdr_vm.profile.scalars import MAX_HEADER

ROUTES = [
    {"secret": "key", "port": 919, "after": ""},
    {"secret": "token", "port": 920, "after": "startability"},
    {"secret": "", "port": 921, "after": ""},
]


class Proxy(ProxyControl):
    """Keeps the maps that it was given."""

    deaf = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.maps: dict[str, dict[str, str]] = {}

    def load_maps(self, maps: Mapping[str, Mapping[str, str]], files: Iterable[str] = ()) -> None:
        if self.deaf:
            raise ProvisionError("it does not answer", hint="x")
        self.maps = {file: dict(maps[file]) for file in files}


@pytest.fixture
def held(tmp_path: Path) -> tuple[Brokers, Proxy]:
    proxy = Proxy(tmp_path)
    return Brokers(ROUTES, proxy, Ledger(tmp_path / "egress.jsonl", "one")), proxy


def ask(brokers: Brokers, op: str, **fields: Any) -> dict[str, Any]:
    return brokers.operations[op](fields)


def test_a_value_goes_to_the_proxy_and_into_no_file(held: tuple[Brokers, Proxy], tmp_path: Path) -> None:
    brokers, proxy = held
    assert ask(brokers, "broker_list") == {"held": [], "open": [], "told": True}
    ask(brokers, "broker_give", name="key", value="s3cret")
    assert proxy.maps[VALUES] == {"key": "s3cret"}
    ask(brokers, "broker_take", name="key")
    assert proxy.maps[VALUES] == {} and ask(brokers, "broker_list")["held"] == []
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {path.name for path in files} == {"egress.jsonl", VALUES, OPEN}
    assert not any("s3cret" in path.read_text() for path in files)
    for fields in ({"name": "another", "value": "x"}, {"name": "key", "value": "a\nb"}, {"name": "key", "value": 5}):
        with pytest.raises(ValueError, match="not"):
            ask(brokers, "broker_give", **fields)


def test_a_gate_opens_its_secret_until_the_gates_run_again(held: tuple[Brokers, Proxy]) -> None:
    brokers, proxy = held
    ask(brokers, "gate_passed", gate="unit")
    assert proxy.maps[OPEN] == {}
    ask(brokers, "gate_passed", gate="startability")
    assert list(proxy.maps[OPEN]) == ["token"]
    ask(brokers, "gates_began")
    assert proxy.maps[OPEN] == {} and ask(brokers, "broker_list")["open"] == []


def test_another_proxy_is_told_as_soon_as_it_listens(held: tuple[Brokers, Proxy]) -> None:
    brokers, proxy = held
    ask(brokers, "broker_give", name="key", value="s3cret")
    proxy.deaf = True
    brokers.proxy_started()
    assert ask(brokers, "broker_list")["told"] is False
    proxy.deaf, proxy.maps = False, {}
    brokers.notify()
    assert proxy.maps[VALUES] == {"key": "s3cret"} and ask(brokers, "broker_list")["told"] is True


def test_the_end_of_the_vm_is_the_end_of_its_values(
    held: tuple[Brokers, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tap without a carrier for one poll may be a device that is reset. After the second, it is set down."""
    brokers, proxy = held
    commands: list[list[str]] = []
    monkeypatch.setattr(link_module, "make_socket", lambda *_: None)
    monkeypatch.setattr(link_module.process, "run", lambda words, **_: commands.append(words))
    up, running = link_module._IFF_UP, link_module._IFF_RUNNING
    flags = iter([up, up, up, up | running, up, up | running, up, up, up])
    monkeypatch.setattr(Link, "_read_flags", lambda _: next(flags))
    link = Link("kv1", "ktrdr-one", Ledger(tmp_path / "link.jsonl", "one"), brokers.forget)
    for name in ("key", "token"):
        ask(brokers, "broker_give", name=name, value="s3cret")
    for _ in range(7):
        link.poll()
        assert len(proxy.maps[VALUES]) == 2 and commands == []
    link.poll()
    assert proxy.maps[VALUES] == {} and ask(brokers, "broker_list")["held"] == []
    link.poll()
    assert [command[-1] for command in commands] == ["down"]
    [line] = (tmp_path / "link.jsonl").read_text().splitlines()
    assert json.loads(line)["rule"] == "link"


def test_a_large_map_is_loaded_in_parts_that_the_proxy_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty credentials of the greatest length, and sixty-four granted names."""
    said: list[str] = []

    def ask(_self: ProxyControl, command: str) -> str:
        said.append(command)
        return "New version created: 7" if command.startswith("prepare") else ""

    monkeypatch.setattr(ProxyControl, "ask", ask)
    held = {f"key{number}": str(number) + "x" * (MAX_HEADER - 2) for number in range(50)}
    granted = {f"{number}.{'a' * 250}": f"g{number}" for number in range(GRANT_SLOTS)}
    ProxyControl(tmp_path).load_maps({VALUES: held, "tls.granted": granted}, (VALUES, "tls.granted"))
    assert max(map(len, said)) < 16 * 1024 - 1024
    for file, entries in ((VALUES, held), ("tls.granted", granted)):
        path = tmp_path / file
        first, *parts, last = [command for command in said if str(path) in command]
        assert (first, last) == (f"prepare map {path}", f"commit map @7 {path}") and len(parts) > 1
        lines = [line for part in parts for line in part.removeprefix(f"add map @7 {path} <<\n").splitlines()]
        assert dict(line.split(" ", 1) for line in lines) == entries
