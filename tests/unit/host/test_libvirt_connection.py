"""A libvirtd that goes away and comes back, and what may not be concluded meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from ktrdr_vm.errors import ForeignError, HostError, ProvisionError
from ktrdr_vm.host import libvirt, libvirt_binding
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.identity import METADATA_NAMESPACE

binding: Any = pytest.importorskip("libvirt", reason="libvirt-python is compiled against headers that are not here")
METADATA = f'<i:instance xmlns:i="{METADATA_NAMESPACE}"><i:instance_id>one</i:instance_id><i:home>/home</i:home><i:mode>sandbox</i:mode></i:instance>'


class Refused(binding.libvirtError):  # type: ignore[misc]  # a class of a module without types
    def __init__(self, code: int) -> None:
        super().__init__("refused")
        self.code = code

    def get_error_code(self) -> int:
        return self.code

    def get_error_message(self) -> str:
        return f"error {self.code}"


class Daemon:
    """A connection and its only domain; `fails` are the codes of the next answers to a question about it."""

    def __init__(self, *fails: int, alive: bool = True) -> None:
        self.fails, self.alive = list(fails), alive

    def isAlive(self) -> bool:
        return self.alive

    def lookupByName(self, _: str) -> Daemon:
        return self

    def metadata(self, *_: object) -> str:
        if self.fails:
            raise Refused(self.fails.pop(0))
        return METADATA

    def name(self) -> str:
        return "ktrdr-one"

    def state(self) -> tuple[int, int]:
        return binding.VIR_DOMAIN_RUNNING, 0

    def isPersistent(self) -> int:
        return 0


def opens(monkeypatch: pytest.MonkeyPatch, *answers: Daemon | int) -> list[Any]:
    waiting = list(answers)

    def open_(_: str) -> Daemon:
        answer = waiting.pop(0)
        if isinstance(answer, int):
            raise Refused(answer)
        return answer

    monkeypatch.setattr(binding, "open", open_)
    monkeypatch.setattr(libvirt.time, "sleep", lambda _: None)
    return waiting


def test_one_that_was_there_is_waited_for_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opens(
        monkeypatch,
        Daemon(binding.VIR_ERR_RPC, alive=False),
        binding.VIR_ERR_SYSTEM_ERROR,
        binding.VIR_ERR_SYSTEM_ERROR,
        Daemon(),
    )
    found = Libvirt().find("ktrdr-one")
    assert found is not None and (found.instance_id, found.state) == ("one", "running")


def test_one_that_never_was_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    left = opens(monkeypatch, binding.VIR_ERR_SYSTEM_ERROR, Daemon())
    with pytest.raises(HostError, match="does not answer"):
        Libvirt().find("ktrdr-one")
    assert len(left) == 1


def test_the_guard_waits_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    left = opens(monkeypatch, Daemon(binding.VIR_ERR_RPC, alive=False), binding.VIR_ERR_SYSTEM_ERROR, Daemon())
    with pytest.raises(HostError):
        Libvirt(patience=0).find("ktrdr-one")
    assert len(left) == 1


def test_who_could_not_be_asked_is_neither_a_stranger_nor_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teardown leaves out what is somebody else's, so only libvirt's own word for a lack of metadata makes it
    that."""
    opens(monkeypatch, Daemon(binding.VIR_ERR_INTERNAL_ERROR))
    with pytest.raises(ProvisionError, match="find the domain") as caught:
        Libvirt().find("ktrdr-one")
    assert not isinstance(caught.value, ForeignError)
    opens(monkeypatch, Daemon(binding.VIR_ERR_NO_DOMAIN_METADATA))
    with pytest.raises(ForeignError):
        Libvirt().find("ktrdr-one")
    opens(monkeypatch, Daemon(binding.VIR_ERR_NO_DOMAIN))
    assert Libvirt().find("ktrdr-one") is None


def test_states_are_called_by_their_names_in_libvirt() -> None:
    numbers = {name: vars(binding)[f"VIR_DOMAIN_{name.upper()}"] for name in libvirt_binding._STATES.values()}
    assert numbers == {name: number for number, name in libvirt_binding._STATES.items()}


class Busy:
    """A domain whose QEMU does not end before `kills` requests."""

    def __init__(self, kills: int, code: int) -> None:
        self.kills, self.code = kills, code

    def isActive(self) -> bool:
        return self.kills > 0

    def destroy(self) -> None:
        self.kills -= 1
        if self.kills:
            raise Refused(self.code)


def test_a_killed_qemu_that_is_in_a_long_write_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt.time, "sleep", lambda _: None)
    busy = Busy(3, binding.VIR_ERR_SYSTEM_ERROR)
    Libvirt._destroy(busy)
    assert not busy.isActive()


@pytest.mark.parametrize(("code", "limit"), [("VIR_ERR_RPC", 180.0), ("VIR_ERR_SYSTEM_ERROR", 0.0)])
def test_it_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch, code: str, limit: float) -> None:
    monkeypatch.setattr(libvirt.time, "sleep", lambda _: None)
    monkeypatch.setattr(libvirt, "KILL_LIMIT", limit)
    busy = Busy(3, getattr(binding, code))
    with pytest.raises(Refused):
        Libvirt._destroy(busy)
    assert busy.kills == 2
