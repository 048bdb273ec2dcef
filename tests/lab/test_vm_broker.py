"""A brokered secret and a real guest: its environment names the URL, its memory and disk have no byte of the value, and
sleep changes nothing."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from laboratory.instances import make_workspace
from laboratory.lab import Lab
from laboratory.servers import APPLICATIONS
from test_egress_broker import HOST, Provider

from ktrdr_vm.guest.personalize import personalize
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.suspend import resume, suspend
from ktrdr_vm.plan import brokers
from ktrdr_vm.templates.base import build_template
from ktrdr_vm.templates.store import find_template

PROFILE = f"""\
version: 1
name: broker
mode: interactive
image: debian-13-docker
resources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}
secrets:
  - name: model-key
    source: {{env: KTRDR_LAB_CANARY}}
    broker: {{host: {HOST}, header: "x-api-key: {{{{ secret }}}}", base_url_env: MODEL_URL, methods: [GET, POST], paths: ["/v1/"]}}
"""


def _shell(instance: LoadedInstance, line: str) -> str:
    done = instance.connect().run(line, become=True, timeout=120, environment=instance.environment())
    return (done.stdout + done.stderr).decode()


@pytest.mark.full
def test_no_byte_of_it_is_in_the_guest(
    lab: Lab, image: Image, libvirt: Libvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = lab.home.root / "authority.pem"
    authority.write_text(lab.world.authority.pem)
    authority.chmod(0o644)
    monkeypatch.setattr(brokers, "_AUTHORITIES", str(authority))
    provider = APPLICATIONS[HOST] = Provider()
    workspace = make_workspace(tmp_path)
    (workspace / "broker.yaml").write_text(PROFILE)
    gathered = gather(workspace / "broker.yaml", home=lab.home, workspace=workspace, instance_id=lab.new_id("broker"))
    plan, canary = gathered.plan, f"CANARY{secrets.token_hex(16)}".encode()
    template = find_template(lab.home, plan, image) or build_template(lab.home, plan, image, libvirt, progress=print)
    instance = Instance(lab.home, plan.identity, libvirt)
    asked = 'curl -s -m 60 -o /dev/null -w "%{http_code}" -H "x-api-key: placeholder" -d "{}" "$MODEL_URL/v1/messages"'
    try:
        with instance.locked():
            loaded = instance.create(plan, read_secret=lambda _: canary, mount_roots=(), template=template)
            guest = loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
            personalize(guest, plan, loaded.environment())
            loaded.complete(read_secret=lambda _: canary, mount_roots=())
            assert _shell(loaded, asked) == "200"
            assert provider.seen[-1].values("x-api-key") == [canary.decode()]
            assert "MODEL_URL=" in _shell(loaded, "cat /etc/environment")
            assert canary.decode() not in _shell(
                loaded, "cat /proc/[0-9]*/environ /etc/ktrdr/* /run/secrets/* | tr '\\0' '\\n'"
            )
            # In the guest, so that the search of its memory can find something.
            _shell(
                loaded,
                "systemd-run --quiet --unit=marker --setenv=MARKER=here-$((40+2))-is-the-marker sleep infinity; sync",
            )
            suspend(loaded)
        saved = instance.paths.saved.read_bytes()
        assert b"here-42-is-the-marker" in saved, "the saved memory cannot be searched"
        assert canary not in saved
        assert canary not in (instance.paths.directory / "overlay.qcow2").read_bytes()
        with instance.locked():
            resume(loaded, read_secret=lambda _: canary)
        assert _shell(loaded, asked) == "200"
        assert [status for status in loaded.status() if status.differences or not status.exists] == []
        for path in [path for path in instance.paths.directory.rglob("*") if path.is_file()]:
            assert canary not in path.read_bytes(), path
    finally:
        with instance.locked():
            instance.destroy()
        del APPLICATIONS[HOST]
    assert instance.find_residue() == []
