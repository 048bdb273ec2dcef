"""The main job in a fresh box, and the disk that it leaves: every other test begins from it, with its template.

Both are kept by the digest of what the program is made of, so that a test that was changed is tried again without it.
With KTRDR_VM_HOSTS_REUSE those of an earlier program will do: for work on what comes after.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ktrdr_vm.host.paths import PROJECT

from .machine import EVIDENCE, LIMIT, Box
from .release import Release
from .report import read_commit
from .root import CLONE, find_or_build

_PROGRAM = ("ktrdr_vm", "images", "profiles", "playbooks", "examples", "scripts", "Makefile", "pyproject.toml")


@dataclass(frozen=True)
class First:
    """How it ended. `said` is all that `make run` printed, `left` what virsh and two folders list afterwards."""

    code: int
    said: str
    report: str
    denials: tuple[str, ...]
    home_mode: str
    left: str
    doctor: str
    steps: tuple[tuple[str, float], ...]
    disk: str
    commit: str

    @property
    def passed(self) -> bool:
        return self.code == 0 and not self.denials


def find_or_run(release: Release) -> First:
    """What is known of this program on this release, or the main job now, in about ten minutes."""
    place = find_or_build(release)
    digest = _make_digest()
    kept, disk = place / f"first-{digest}.json", place / f"first-{digest}.qcow2"
    if os.environ.get("KTRDR_VM_HOSTS_REUSE"):
        kept = next(iter(place.glob("first-*.json")), kept)
    if kept.exists():
        found = json.loads(kept.read_text())
        return First(**found | {name: _freeze(found[name]) for name in ("denials", "steps")})
    for old in place.glob("first-*"):
        old.unlink()
    made = _run(release, disk)
    kept.write_text(json.dumps(asdict(made)))
    return made


def _run(release: Release, disk: Path) -> First:
    commit = read_commit()
    with Box(release) as box:
        box.copy_checkout()
        said = box.run(f"cd {CLONE} && make run", limit=LIMIT, step="make run, with the template")
        report = box.run("cat /var/lib/ktrdr-vm/runs/demo/latest/report.json").out
        left = box.run("virsh -q list --all --name; ls /etc/apparmor.d/libvirt /var/lib/ktrdr-vm/instances").out
        doctor = box.run(f"cd {CLONE} && .venv/bin/ktrdr-vm doctor", limit=300, step="doctor").out
        mode, denials = box.run("stat -c %a /root").out.strip(), box.denials()
        if said.code or denials:
            box.keep_evidence(EVIDENCE / release.codename / "first")
        box.power_off()
        box.keep_disk(disk)
        return First(
            said.code,
            said.out + said.err,
            report,
            tuple(denials),
            mode,
            left,
            doctor,
            tuple(box.steps),
            str(disk),
            commit,
        )


def _freeze(rows: list[object]) -> tuple[object, ...]:
    return tuple(tuple(row) if isinstance(row, list) else row for row in rows)


def _make_digest() -> str:
    found = hashlib.sha256()
    for name in _PROGRAM:
        top = PROJECT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
