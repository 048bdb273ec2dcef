"""The ladder of the boxes: `release` → `first` (the main job as root, in a fresh box) → `box` (a box that begins where
that one ended).

KTRDR_VM_HOST names one release; without it all are tried. With KTRDR_VM_HOSTS_REPORT what was run is written there, for
docs/hosts.md.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from box.first import First, find_or_run
from box.machine import EVIDENCE, Box
from box.release import RELEASES, Release
from box.report import Rows


@pytest.fixture(
    scope="session", params=[os.environ["KTRDR_VM_HOST"]] if os.environ.get("KTRDR_VM_HOST") else list(RELEASES)
)
def release(request: pytest.FixtureRequest) -> Release:
    if os.geteuid() != 0:
        pytest.skip("a box is made from packages, which needs root")
    return RELEASES[request.param]


@pytest.fixture(scope="session")
def rows() -> Rows:
    """What was run, written down where that is wanted."""
    place = os.environ.get("KTRDR_VM_HOSTS_REPORT")
    return Rows(Path(place) if place else None)


@pytest.fixture(scope="session")
def first(release: Release) -> First:
    return find_or_run(release)


@pytest.fixture
def box(request: pytest.FixtureRequest, release: Release, first: First, rows: Rows) -> Iterator[Box]:
    """A host on which the program has run before. What AppArmor denied in it fails the test."""
    name = request.node.name.partition("[")[0]
    with Box(release, Path(first.disk)) as made:
        # The program as it is now: the disk may be of an earlier one.
        made.copy_checkout()
        place = EVIDENCE / release.codename / request.node.name
        shutil.rmtree(place, ignore_errors=True)
        yield made
        failed = getattr(request.node, "failed", False)
        denials = made.denials()
        if failed or denials:
            made.keep_evidence(place)
        rows.add(release, _describe(request.node), made.steps, denials, passed=not failed and not denials)
        assert denials == [], f"AppArmor denied something in {name}"


def _describe(item: pytest.Item) -> str:
    """As docs/hosts.md shows it."""
    words = getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
    variant = getattr(getattr(item, "callspec", None), "params", {}).get("name")
    return f"{words}: {variant}" if variant else words


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    if outcome.get_result().failed:  # type: ignore[attr-defined]
        item.failed = True  # type: ignore[attr-defined]
