"""The ladder of the lab: `lab` (namespaces and the world outside) → `libvirt` → `image` → `instance` (one VM for many
tests).

Entering the namespaces cannot be undone, so it happens once, before the first test that needs it, and holds to the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from laboratory.daemons import running_libvirt
from laboratory.instances import LabInstance, find_or_build_image, running_instance
from laboratory.lab import Lab, enter_lab, leave_lab
from laboratory.person import Person, make_person
from laboratory.stock import FLAVOURS, StockImage, find_or_build_stock, find_stock
from laboratory.without_root import make_repository, outside

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.images.store import Image
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.inventory import find_instances
from ktrdr_vm.users import in_user_namespace

_ENTERED: list[Lab] = []


def pytest_configure(config: pytest.Config) -> None:
    # Real servers, threads and processes end at any time: what they warn of is shown, and is no failure.
    config.addinivalue_line("filterwarnings", "default")


def find_fixtures(item: Any) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs no VM first, then the commands that boot their own, then all that shares one: never more VMs at once
    than needed."""

    def place(item: pytest.Item) -> int:
        names = find_fixtures(item)
        if "lab" not in names:
            # Before the namespaces are entered: the lab's sniffers would read every byte of a flood on loopback.
            return -1
        return 0 if not {"image", "stock"} & set(names) else 2 if "instance" in names else 1

    items.sort(key=place)
    for item in items:
        if place(item) > 0:
            item.add_marker("vm")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("host_root") and in_user_namespace():
        pytest.skip("needs root of the host, and this is the root of a world")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure keeps what explains it, while it is still there."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and _ENTERED:
        place = _ENTERED[0].keep_evidence(item.nodeid)
        report.sections.append(("evidence", str(place)))


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("the lab makes network namespaces, which needs root")
    if any("image" in find_fixtures(item) for item in request.session.items):
        # Packages come from the host's mirror, which cannot be reached from within.
        find_or_build_image()
    if any("larger_image" in find_fixtures(item) for item in request.session.items):
        find_or_build_image(name="debian-13-larger")
    wanted: list[Any] = [item for item in request.session.items if "stock" in find_fixtures(item)]
    for name in dict.fromkeys(item.callspec.params["stock"] for item in wanted):
        find_or_build_stock(FLAVOURS[name])
    entered = enter_lab()
    _ENTERED.append(entered)
    yield entered
    left = [path.name for path in entered.home.instances.iterdir()]
    _ENTERED.clear()
    leave_lab(entered)
    assert left == [], "instances were left behind"


@pytest.fixture(autouse=True, scope="module")
def no_residue(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every module ends with nothing left of what it made, asked of the host itself."""
    before = set(_ENTERED[0].instance_ids) if _ENTERED else set()
    yield
    if not _ENTERED:
        return
    lab = _ENTERED[0]
    gone = lab.instance_ids - before - {lab.shared_id}
    if not gone:
        return
    left = {one: Instance(lab.home, parse_instance_id(one), Libvirt()).find_residue() for one in gone}
    assert {one: found for one, found in left.items() if found} == {}
    assert gone & {found.instance_id for found in find_instances(lab.home, Libvirt())} == set()


@pytest.fixture(scope="session")
def libvirt(lab: Lab) -> Iterator[Libvirt]:
    with running_libvirt(lab.scratch):
        connection = Libvirt()
        yield connection
        assert connection.list_ours() == [], "domains were left behind"
        connection.close()


@pytest.fixture(scope="session")
def image(lab: Lab, libvirt: Libvirt) -> Image:
    found = find_or_build_image(lab.home)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def larger_image(lab: Lab, libvirt: Libvirt) -> Image:
    found = find_or_build_image(lab.home, name="debian-13-larger")
    assert found is not None
    return found


@pytest.fixture(scope="session", params=list(FLAVOURS))
def stock(request: pytest.FixtureRequest, lab: Lab, libvirt: Libvirt) -> StockImage:
    """A stand-in for each published cloud image."""
    found = find_stock(FLAVOURS[request.param])
    assert found is not None
    return found


@pytest.fixture(scope="session")
def instance(lab: Lab, image: Image, libvirt: Libvirt) -> Iterator[LabInstance]:
    """The sandbox that the tests share: booted once, with every kind of allow rule, a read-only mount and a secret."""
    with running_instance(lab, libvirt) as running:
        yield running


@pytest.fixture(scope="module")
def alice(lab: Lab) -> Iterator[Person]:
    with make_person(0) as person:
        make_repository(person)
        assert outside(person) == []
        yield person


@pytest.fixture(scope="module")
def bob(lab: Lab) -> Iterator[Person]:
    with make_person(1) as person:
        yield person
