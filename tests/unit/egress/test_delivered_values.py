"""What is masked is what the host delivered: the guard keeps it, a run takes it up, and before that the guest has no
secret."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress import client
from ktrdr_vm.egress.delivered_values import LEASE, MAX_BYTES, MAX_VALUES, DeliveredValues
from ktrdr_vm.errors import GuestError, ProvisionError
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.host.libvirt_binding import DomainState
from ktrdr_vm.instance.resources import secret as secret_module
from ktrdr_vm.instance.resources.secret import Secret
from ktrdr_vm.profile.model import Secret as Entry
from ktrdr_vm.run.mask import GrowingMask, find_mask


def encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


class Guard:
    """The real keeper, asked without a socket."""

    def __init__(self) -> None:
        self.now = 100.0
        self.values = DeliveredValues(lambda: self.now)
        self.asked: list[str] = []

    def ask(self, _directory: Path, op: str, **fields: Any) -> dict[str, Any]:
        self.asked.append(op)
        if op in ("given", "gone"):
            return {"ok": True}
        return self.values.operations[op]({"op": op, **fields})


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    made = Guard()
    monkeypatch.setattr(client, "ask_guard", made.ask)
    return made


class Guest:
    """Answers each command with what stands for its first words; None does not answer."""

    def __init__(self, **codes: int | None) -> None:
        self.codes = codes
        self.ran: list[tuple[Any, bytes]] = []

    def run(self, command: Any, *, stdin: bytes = b"", **_: Any) -> GuestResult:
        self.ran.append((command, stdin))
        what = "exists" if command[0] == "test" else "deliver" if stdin else "remove"
        code = self.codes.get(what, 0)
        if code is None:
            raise GuestError("no answer", where="one", hint="wait")
        return GuestResult(code, b"", b"read-only file system" if code else b"")


def make_secret(guest: Guest, state: str | None = "running") -> Secret:
    entry = Entry("token", "/run/secrets/token", env="KTRDR_X", ttl=60)
    facts = SimpleNamespace(state=DomainState(state)) if state else None
    target = SimpleNamespace(
        paths=SimpleNamespace(guard=Path("/guard")),
        identity=SimpleNamespace(instance_id="one", domain="ktrdr-one"),
        libvirt=SimpleNamespace(find=lambda _: facts),
    )
    plan = SimpleNamespace(facts=SimpleNamespace(image=SimpleNamespace(user="ktrdr")))
    blueprint = SimpleNamespace(connect=lambda: guest, read_secret=lambda _: b"the-value", plan=plan)
    return Secret(target, blueprint, entry, "token")  # type: ignore[arg-type]


def test_a_value_enters_the_guest_only_when_every_run_masks_it(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, mask = Guest(), GrowingMask("r1")
    guard.values.operations["value_list"]({"reader": "r1", "have": 0})
    naps = []

    def nap(_: float) -> None:
        assert guest.ran == []
        naps.append(1)
        reply = guard.ask(Path(), "value_list", reader="r1", have=len(naps) - 1)
        mask.add(base64.b64decode(value) for _, value in reply["values"])

    monkeypatch.setattr(secret_module.time, "sleep", nap)
    make_secret(guest).create()
    assert naps and mask("so the-value is") == "so *** is"
    assert guest.ran[0][1] == b"the-value"


def test_a_run_that_takes_nothing_up_keeps_the_secret_out(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest()
    guard.values.operations["value_list"]({"reader": "r1", "have": 0})
    monkeypatch.setattr(secret_module, "MASKED_LIMIT", 0.1)
    with pytest.raises(ProvisionError, match="was not delivered"):
        make_secret(guest).create()
    assert guest.ran == []
    # One that has ended is not waited for.
    guard.now += LEASE + 1
    make_secret(guest).create()
    assert len(guest.ran) == 1


def test_a_guest_that_rewrites_its_copy_changes_nothing_of_what_is_masked(guard: Guard) -> None:
    """Nothing is read back from it: what was delivered is masked, and nothing else."""
    make_secret(Guest()).create()
    delivered = (SimpleNamespace(name="token"),)
    instance: Any = SimpleNamespace(
        guard=client.GuardClient(Path("/guard")),
        instance_id="one",
        plan=SimpleNamespace(profile=SimpleNamespace(delivered=delivered)),
        connect=lambda: pytest.fail("the guest was asked"),
    )
    warned: list[str] = []
    mask = find_mask(instance, warned.append)
    assert mask('{"verdict": "allow", "said": "the-value"}') == '{"verdict": "allow", "said": "***"}'
    assert warned == []
    guard.values = DeliveredValues()
    find_mask(instance, warned.append)
    assert len(warned) == 1 and "token" in warned[0] and "rotate" in warned[0]


@pytest.mark.parametrize(
    "value", ["", "!", "é", 5, None, encode(b"x" * (MAX_BYTES + 1))], ids=lambda value: str(value)[:10]
)
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        DeliveredValues().operations["value_add"]({"name": "a", "value": value})


def test_values_are_bounded_in_number_and_the_same_again_is_one() -> None:
    values = DeliveredValues()
    for number in range(MAX_VALUES):
        values.operations["value_add"]({"name": "a", "value": encode(b"%d" % number)})
        values.operations["value_add"]({"name": "a", "value": encode(b"%d" % number)})
    with pytest.raises(ValueError, match="250 values"):
        values.operations["value_add"]({"name": "a", "value": encode(b"more")})


# -- removal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guest", "state", "message"),
    [
        (Guest(remove=None), "running", "does not answer"), (Guest(remove=1), "running", "read-only file system"),
        (Guest(remove=0, exists=0), "running", "the guest keeps it"), (Guest(), "paused", "the VM is paused"),
    ],
    ids=["silent", "fails", "still there", "paused"],
)  # fmt: skip
def test_a_removal_that_did_not_happen_is_an_error_and_its_expiry_stands(
    guard: Guard, guest: Guest, state: str, message: str
) -> None:
    with pytest.raises(ProvisionError, match=message):
        make_secret(guest, state).remove()
    assert "gone" not in guard.asked


@pytest.mark.parametrize("state", ["running", None, "shutoff", "crashed"])
def test_what_is_gone_is_gone(guard: Guard, state: str | None) -> None:
    make_secret(Guest(exists=1), state).remove()
    assert ("gone" in guard.asked) == (state == "running")
