"""The main job in a fresh box, and the disk that it leaves: every other test begins from it, with its template."""

from __future__ import annotations

from .machine import EVIDENCE, LIMIT, Box, Said
from .release import Release
from .root import CLONE


class First:
    """The main job in a fresh box, and the disk that it left: its template is on it."""

    def __init__(self, release: Release) -> None:
        with Box(release) as box:
            box.copy_checkout()
            self.said: Said = box.run(f"cd {CLONE} && make run", limit=LIMIT, step="make run, with the template")
            self.report = box.run("cat /var/lib/ktrdr-vm/runs/demo/latest/report.json").out
            self.denials = box.denials()
            self.mode = box.run("stat -c %a /root").out.strip()
            self.left = box.run("virsh -q list --all --name; ls /etc/apparmor.d/libvirt /var/lib/ktrdr-vm/instances").out
            if self.said.code or self.denials:
                box.keep_evidence(EVIDENCE / release.codename / "first")
            self.doctor = box.run(f"cd {CLONE} && .venv/bin/ktrdr-vm doctor", limit=300, step="doctor").out
            box.power_off()
            self.steps = box.steps
            self.disk = box.keep_disk(box.place / "first.qcow2")
