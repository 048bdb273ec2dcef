"""A stock image tells its format only when it has been fetched; the overlay must stand on the file that is there."""

from pathlib import Path
from types import SimpleNamespace

from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import ImageRef, Profile
from ktrdr_vm.run.vm import know_image


def make_plan(tmp_path: Path) -> Plan:
    image = ImageFacts("stock.qcow2", "0" * 64, "/images/0", boot="disk")
    facts = Facts("tcg", "/usr/bin/qemu", "pc-q35-7.2", str(tmp_path), image)
    return Plan(Profile("p", ImageRef(url="https://images.test/stock.qcow2", sha256="0" * 64)), facts, parse_instance_id("stream-a"))


def test_the_plan_that_is_carried_out_knows_the_format(tmp_path):
    planned = make_plan(tmp_path)
    known = know_image(planned, SimpleNamespace(disk_format="qcow2"))
    assert known.facts.image.disk == "/images/0/disk.qcow2" and "disk.qcow2" in known.render()["domain.xml"]
    assert known.digest != planned.digest


def test_what_was_right_stays_as_it_was(tmp_path):
    planned = make_plan(tmp_path)
    assert know_image(planned, SimpleNamespace(disk_format="raw")) is planned
