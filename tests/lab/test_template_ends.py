"""The VM of a template whose QEMU crashes: booted once more, and after that an error that says so; nothing is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from laboratory.instances import make_workspace
from laboratory.lab import Lab

from ktrdr_vm.errors import VmEndedError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.resources.domain import find_qemu
from ktrdr_vm.templates.base import FAILED_CONSOLE, build_template
from ktrdr_vm.templates.store import find_template

PROFILE = "version: 1\nname: ends\nimage: debian-13-docker\nresources: {{vcpus: 1, memory: {}MiB, disk: 10GiB}}\n"


@pytest.mark.parametrize("crashes", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_template_is_booted_once_more_when_its_qemu_crashes(
    crashes: int, lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path)
    # A size of its own, so that no other test has made its template.
    (workspace / "ends.yaml").write_text(PROFILE.format(1030 + crashes))
    plan = gather(workspace / "ends.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id("ends")).plan
    start = libvirt.start
    started: list[str] = []
    said: list[str] = []

    def start_and_crash(name: str, xml: str, *, persistent: bool) -> None:
        start(name, xml, persistent=persistent)
        started.append(name)
        if len(started) <= crashes:
            for pid in find_qemu(name, lab.home.templates):
                os.kill(pid, signal.SIGSEGV)

    monkeypatch.setattr(libvirt, "start", start_and_crash)
    if crashes == 1:
        template = build_template(lab.home, plan, image, libvirt, progress=said.append)
        assert find_template(lab.home, plan, image) == template
    else:
        with pytest.raises(VmEndedError, match="the VM ended before the guest could settle: QEMU has exited") as failed:
            build_template(lab.home, plan, image, libvirt, progress=said.append)
        assert failed.value.where == str(lab.home.templates / FAILED_CONSOLE) and "console" in failed.value.message
        assert find_template(lab.home, plan, image) is None
        assert not list(lab.home.templates.glob(".new-*"))
    assert len(started) == 2 and libvirt.find(started[0]) is None and not find_qemu(started[0])
    assert sum("the template is booted once more" in line for line in said) == 1
