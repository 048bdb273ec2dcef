"""Which of the refs that came back is judged, and what a report says of the files beneath it."""

from __future__ import annotations

import pytest

from ktrdr_vm.errors import GuestError
from ktrdr_vm.guest import artifacts, commits, workspace_parts
from ktrdr_vm.guest.commits import Returned, ReturnedRef
from ktrdr_vm.guest.workspace import Laid
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.run.warnings import _beneath

IDENTITY = parse_instance_id("one")


def come(*names: str, branch: str) -> Returned:
    return Returned(tuple(ReturnedRef(f"refs/ktrdr/one/{name}", "c" * 40, ()) for name in names), branch)


@pytest.mark.parametrize(
    ("names", "branch", "base", "chosen"),
    [
        (("a", "main", "b"), "a", "main", "a"), (("main", "b"), "gone", "main", "main"), (("b",), "gone", "main", "b"),
        (("feat/x", "b"), "gone", "feat/x", "feat/x"),
    ],
)  # fmt: skip
def test_the_branch_that_is_checked_out_then_that_of_the_base_then_the_only_one(
    names: tuple[str, ...], branch: str, base: str, chosen: str
) -> None:
    found = come(*names, branch=branch).choose(IDENTITY, base)
    assert found is not None and found.ref == f"refs/ktrdr/one/{chosen}"


def test_of_several_others_none_is_judged() -> None:
    with pytest.raises(GuestError, match="the branch of the work is unknown"):
        come("a", "b", branch="gone").choose(IDENTITY, "main")
    assert come(branch="main").choose(IDENTITY, "main") is None


def test_the_report_names_five_files_of_each_kind_and_counts_the_others() -> None:
    names = tuple(f"f{number}" for number in range(7))
    [laid] = _beneath(Laid(files=names))
    [deleted] = _beneath(Laid(deleted=names[:5]))
    [overruled] = _beneath(Laid(overruled=names[:6]))
    assert laid.endswith("no commit has: f0, f1, f2, f3, f4 and 2 more")
    assert deleted.endswith(": f0, f1, f2, f3, f4") and overruled.endswith(": f0, f1, f2, f3, f4 and 1 more")


def test_the_numbers_of_what_comes_and_goes() -> None:
    limits = artifacts.ArtifactLimits()
    assert (limits.files, limits.single, limits.total) == (10_000, 256 << 20, 1 << 30)
    assert (commits.MAX_REFS, commits.MAX_BUNDLE, workspace_parts.MOST_TAGS) == (50, 256 << 20, 1000)
