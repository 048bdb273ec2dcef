"""Instances are found by what they left on the host, whatever was lost; what is not ours is not taken for it. No VM."""

from __future__ import annotations

import subprocess

import pytest
from laboratory.lab import Lab

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.clock import later
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.nft import read_comment
from ktrdr_vm.identity import Identity, parse_instance_id
from ktrdr_vm.instance.garbage import collect_expired, collect_garbage
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.inventory import find_instances
from ktrdr_vm.instance.resources.base import Target
from ktrdr_vm.instance.resources.firewall import Firewall
from ktrdr_vm.instance.resources.tap import Tap


def leave(lab: Lab, identity: Identity, what: str, home: str) -> None:
    """A firewall or a tap with the mark of a home, and nothing else of the instance."""
    mark = identity.mark(home)
    if what == "firewall":
        rules = f'table inet {identity.table} {{ comment "{mark}"; chain c {{ type filter hook input priority 0; }}; }}'
        subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True, timeout=10)
    else:
        subprocess.run(["ip", "tuntap", "add", "dev", identity.tap, "mode", "tap"], check=True, timeout=10)
        subprocess.run(["ip", "link", "set", "dev", identity.tap, "alias", mark], check=True, timeout=10)


@pytest.mark.parametrize("what", ["firewall", "tap"])
def test_what_is_left_is_found_without_a_journal_and_collected(what: str, lab: Lab, libvirt: Libvirt) -> None:
    identity = parse_instance_id(lab.new_id(f"left-{what}"))
    leave(lab, identity, what, str(lab.home.root))
    (found,) = [one for one in find_instances(lab.home, libvirt) if one.instance_id == identity.instance_id]
    assert found.seen == {what} and "no journal" in found.note
    rows = collect_garbage(lab.home, libvirt, dry_run=True)
    assert {"action": "would remove", "instance_id": identity.instance_id, "reason": found.note} in rows
    collect_garbage(lab.home, libvirt, dry_run=False)
    assert identity.instance_id not in {one.instance_id for one in find_instances(lab.home, libvirt)}


@pytest.mark.parametrize(("what", "resource"), [("firewall", Firewall), ("tap", Tap)])
def test_what_another_home_made_is_neither_listed_nor_touched(
    what: str, resource: type, lab: Lab, libvirt: Libvirt
) -> None:
    identity = parse_instance_id(lab.new_id(f"foreign-{what}"))
    leave(lab, identity, what, "/somebody/elses/home")
    target = Target(identity, lab.home.instance(identity.instance_id), libvirt)
    try:
        assert identity.instance_id not in {one.instance_id for one in find_instances(lab.home, libvirt)}
        with pytest.raises(ProvisionError, match="not made for this instance"):
            resource(target).remove()
        assert resource(target).exists()
    finally:
        commands = (
            [["nft", "delete", "table", "inet", identity.table]]
            if what == "firewall"
            else [["ip", "link", "del", identity.tap]]
        )
        for command in commands:
            subprocess.run(command, check=True, timeout=10)


def test_a_comment_is_the_tables_own(lab: Lab) -> None:
    rules = 'table inet ktrdr_probe { chain c { comment "ktrdr-vm instance_id=x home=00000000"; }; }'
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True, timeout=10)
    assert read_comment("ktrdr_probe") == ""
    subprocess.run(["nft", "delete", "table", "inet", "ktrdr_probe"], check=True, timeout=10)
    assert read_comment("ktrdr_probe") is None


def test_what_has_outlived_its_time_goes_whoever_lives_in_it(lab: Lab, libvirt: Libvirt) -> None:
    """The journal's clock is the wall clock; one that is kept, and one that a person lives in, go as well."""
    ids = {name: lab.new_id(name) for name in ("outlived", "still")}
    for name, instance_id in ids.items():
        directory = lab.home.instance(instance_id).directory
        directory.mkdir(mode=0o711, parents=True)
        expires_at = later(-1) if name == "outlived" else later(3600)
        Journal(
            lab.home.instance(instance_id).journal, instance_id, mode="interactive", kept=True, expires_at=expires_at
        ).save()
    planned = {row["instance_id"]: row["reason"] for row in collect_garbage(lab.home, libvirt, dry_run=True)}
    assert "time to live ended" in planned[ids["outlived"]] and ids["still"] not in planned
    assert [row["instance_id"] for row in collect_expired(lab.home, libvirt)] == [ids["outlived"]]
    assert (
        not lab.home.instance(ids["outlived"]).directory.exists() and lab.home.instance(ids["still"]).directory.exists()
    )
    Instance(lab.home, parse_instance_id(ids["still"]), libvirt).destroy()
