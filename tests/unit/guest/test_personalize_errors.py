"""What an image lacks is said when its guest gets its identity, with what to do."""

from __future__ import annotations

import pytest

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.personalize import personalize
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import load_profile
from tests.fakes.guest import FakeGuest


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        (81, "Docker does not start in the guest: no space", "journalctl -u docker"),
        (82, "require python3 in the guest, which has none in its PATH", "use an image that has python3"),
        (1, "the identity could not be written: no space", "a user with sudo, and sh"),
    ],
)
def test_each_says_what_is_missing(code: int, message: str, hint: str) -> None:
    loaded = load_profile("{version: 1, name: p, image: debian-13-docker}", "p", lambda *_: ("", b""))
    facts = Facts("tcg", "/bin/false", "q35", "/home", ImageFacts("none", "0" * 64, "/nonexistent"))
    plan = Plan(loaded.profile, facts, parse_instance_id("x"), loaded.data)
    with pytest.raises(GuestError) as caught:
        personalize(FakeGuest(lambda ran: GuestResult(code, b"", b"no space\n")), plan, {})
    assert message in caught.value.message and hint in caught.value.hint
