"""A copy of the workspace that the guest could not make says what the image requires."""

from __future__ import annotations

import pytest

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest.workspace import _check


@pytest.mark.parametrize("said", [b"sh: 3: git: not found\n", b"bash: line 3: git: command not found\n"])
def test_a_guest_without_a_program_of_the_copy_is_told_with_what_it_requires(said: bytes) -> None:
    with pytest.raises(GuestError, match=r"could not be copied: .*git") as caught:
        _check(127, said)
    assert caught.value.hint == "the image requires git, tar, xargs and sudo"
    _check(0, said)
