"""A stock image tells its format only when it has been fetched; the overlay must stand on the file that is there."""

from pathlib import Path
from types import SimpleNamespace

from ktrdr_vm.plan.facts import Facts, ImageFacts
from ktrdr_vm.plan.identity import parse_instance_id
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.model import ImageRef, Profile
from ktrdr_vm.run import Run


def make_run(tmp_path: Path) -> tuple[Run, dict[str, str]]:
    image = ImageFacts("stock.qcow2", "0" * 64, "/images/0", boot="disk")
    facts = Facts("tcg", "/usr/bin/qemu", "pc-q35-7.2", str(tmp_path), image)
    run = Run.__new__(Run)
    written: dict[str, str] = {}
    run._plan = Plan(Profile("p", ImageRef(url="https://images.test/stock.qcow2", sha256="0" * 64)), facts, parse_instance_id("stream-a"))
    run._directory = SimpleNamespace(write=written.__setitem__)
    return run, written


def test_the_plan_that_is_carried_out_knows_the_format(tmp_path):
    run, written = make_run(tmp_path)
    planned = run._plan.digest
    known = run._know_image(SimpleNamespace(disk_format="qcow2"))
    assert known.facts.image.disk == "/images/0/disk.qcow2" and "disk.qcow2" in known.render()["domain.xml"]
    assert known.digest != planned and known.digest in written["plan.json"]


def test_what_was_right_stays_as_it_was(tmp_path):
    run, written = make_run(tmp_path)
    assert run._know_image(SimpleNamespace(disk_format="raw")) is run._plan and written == {}
