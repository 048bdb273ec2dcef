"""Twenty instances made at the same moment, and taken away at the same moment: none gets what is another's. Row 42."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from laboratory.lab import Lab

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.garbage import collect_garbage
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.inventory import find_instances

pytestmark = pytest.mark.usefixtures("image")

COUNT = 20
PROFILE = "version: 1\nname: many\nimage: debian-13-docker\nresources: {vcpus: 1, memory: 256MiB, disk: 10GiB}\n"


def test_twenty_at_once_share_nothing(lab: Lab, libvirt: Libvirt, image: Image, tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text(PROFILE)
    plans = [
        gather(tmp_path / "many.yaml", home=lab.home, workspace=tmp_path, instance_id=lab.new_id(f"many{n}")).plan
        for n in range(COUNT)
    ]
    instances = [Instance(lab.home, plan.identity, Libvirt()) for plan in plans]

    def make(number: int) -> None:
        with instances[number].locked():
            instances[number].create(plans[number], read_secret=lambda _: b"", mount_roots=())
            # Nobody waits for its boot, and twenty of them would be all that the machine does.
            instances[number].libvirt.suspend(instances[number].identity.domain)

    def take_away(instance: Instance) -> list[str]:
        with instance.locked():
            instance.destroy()
        return instance.find_residue()

    def at_once(work: Callable[..., object], over: Iterable[Any]) -> list[object]:
        with ThreadPoolExecutor(COUNT) as pool:
            return list(pool.map(work, over))

    try:
        at_once(make, range(COUNT))
        allocations = [one.load().allocation for one in instances]
        for what in ("loopback", "proxy_uid", "resolver_uid", "host_public_key", "login_public_key", "genid"):
            assert len({getattr(one, what) for one in allocations}) == COUNT, what
        for name in ("namespace", "tap", "table", "uuid", "domain"):
            assert len({getattr(one.identity, name) for one in instances}) == COUNT, name
        ours = {one.identity.instance_id for one in instances}
        found = {one.instance_id: one.note for one in find_instances(lab.home, libvirt) if one.instance_id in ours}
        assert found == dict.fromkeys(ours, "")
        assert [
            row.differences
            for one in instances
            for row in one.load().status()
            if row.kind != "domain" and row.differences
        ] == []
    finally:
        left = at_once(take_away, instances)
    assert left == [[]] * COUNT
    assert [row for row in collect_garbage(lab.home, libvirt, dry_run=True) if row["instance_id"] in ours] == []
