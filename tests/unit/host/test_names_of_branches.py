"""A branch whose name no document of a plan can contain."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host import repository as module
from ktrdr_vm.host.repository import Repository, find_named


@pytest.mark.parametrize("branch", ["main", "", "fix/\u6f22", "caf\udce9"])
def test_a_branch_that_is_not_utf_8_is_refused_and_named(monkeypatch: pytest.MonkeyPatch, branch: str) -> None:
    found = Repository(Path("/w"), branch, "0" * 40, (0, 0), "w")
    monkeypatch.setattr(module, "find_repository", lambda *_: found)
    if branch.isprintable():
        assert find_named(Path("/w")) == found
        return
    with pytest.raises(UsageError, match=r"not UTF-8: 'caf\\udce9'"):
        find_named(Path("/w"))
