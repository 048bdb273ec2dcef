"""The lab of one session: its home, the world outside, and what is kept when a test fails."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ktrdr_vm.host.accelerator import CACHE
from ktrdr_vm.host.paths import PROJECT, Home
from ktrdr_vm.instance.resources.domain import find_qemu
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.world.layout import DAEMONS
from laboratory import namespaces
from laboratory.recorder import Recorder
from laboratory.world import DNS, World

LAB_HOME = Path(os.environ.get("KTRDR_VM_LAB_HOME") or "/var/lib/ktrdr-vm-lab")
LAB_IMAGES = Path(os.environ.get("KTRDR_VM_LAB_IMAGES") or LAB_HOME / "images")
EVIDENCE = Path(os.environ.get("KTRDR_VM_LAB_EVIDENCE") or PROJECT / ".evidence")


@dataclass
class Lab:
    """What every lab test stands on."""

    home: Home
    world: World
    scratch: Path
    instance_ids: set[str] = field(default_factory=set)
    """Every instance_id that a test made; nothing of them may be left."""
    shared_id: str = ""
    """The instance that lives as long as the session."""

    @property
    def recorder(self) -> Recorder:
        return self.world.recorder

    def new_id(self, purpose: str) -> str:
        """An instance_id that no other session on this machine uses."""
        instance_id = f"lab-{os.getpid()}-{purpose}"
        self.instance_ids.add(instance_id)
        return instance_id

    @property
    def environment(self) -> dict[str, str]:
        """For commands that tests start."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.scratch),
            "KTRDR_VM_HOME": str(self.home.root),
            "LC_ALL": "C.UTF-8",
        }

    def keep_evidence(self, test: str) -> Path:
        """Copy what explains a failure to .evidence/<test>/."""
        place = EVIDENCE / re.sub(r"[^A-Za-z0-9_.-]+", "_", test)[-120:]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, timeout=30)
        (place / "ruleset.nft").write_bytes(listed.stdout + listed.stderr)
        (place / "packets.txt").write_text("\n".join(str(asdict(packet)) for packet in self.recorder.packets()[-2000:]))
        (place / "hits.txt").write_text("\n".join(str(asdict(hit)) for hit in self.recorder.hits()[-2000:]))
        for directory in sorted(self.home.instances.glob("*")):
            for name in ("console.log", "egress.jsonl", "journal.json", "guard/guard.log", "guard/proxy.cfg"):
                source = directory / name
                if source.exists():
                    shutil.copyfile(source, place / f"{directory.name}.{source.name}")
        for log in (
            *self.scratch.glob("*.log"),
            *self.scratch.glob("cluster/*.log"),
            *Path("/var/log/libvirt/qemu").glob("*.log"),
        ):
            shutil.copyfile(log, place / log.name)
        return place


def enter_lab() -> Lab:
    """Enter the namespaces and build the world. Everything after it happens there."""
    LAB_HOME.mkdir(mode=0o711, parents=True, exist_ok=True)
    LAB_HOME.chmod(0o711)
    LAB_IMAGES.mkdir(mode=0o711, parents=True, exist_ok=True)
    remove_dead_sessions()
    root = LAB_HOME / f"s{os.getpid()}"
    home = Home(root)
    home.create()
    scratch = root / "scratch"
    scratch.mkdir(mode=0o711)
    # Held for the life of the process: a session without a holder is a dead one.
    descriptor = os.open(root / "session.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    verdict = CACHE.read_bytes() if CACHE.exists() else None
    # Without root the lab is in a world, whose view for daemons is the proxy's too.
    view = DAEMONS.readlink() if DAEMONS.is_symlink() else None
    namespaces.enter_own_namespaces()
    namespaces.mount(str(LAB_IMAGES), home.images, flags=namespaces.MS_BIND)
    for path in ("/run/ktrdr-vm", "/etc/ktrdr-vm"):
        namespaces.hide(path)
    if verdict is not None and CACHE.parent.is_dir():
        CACHE.write_bytes(verdict)
    if view is not None:
        DAEMONS.symlink_to(view)
    resolv = scratch / "resolv.conf"
    resolv.write_text(f"nameserver {DNS}\noptions timeout:1 attempts:2\n")
    namespaces.mount(str(resolv), Path("/etc/resolv.conf").resolve(), flags=namespaces.MS_BIND)
    return Lab(home, World(), scratch)


def leave_lab(lab: Lab) -> None:
    """Remove the session's home; its namespaces end with the process."""
    subprocess.run(["umount", "-l", lab.home.images], check=True, timeout=20)
    shutil.rmtree(lab.home.root)


def remove_dead_sessions() -> None:
    """End and remove what a session left that was killed."""
    for root in LAB_HOME.glob("s[0-9]*"):
        try:
            descriptor = os.open(root / "session.lock", os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            os.close(descriptor)
            continue
        for directory in (root / "instances").glob("*"):
            for pid in (*find_guards(directory / "guard"), *find_qemu(f"ktrdr-{directory.name}")):
                os.kill(pid, 9)
        os.close(descriptor)
        shutil.rmtree(root, ignore_errors=True)
