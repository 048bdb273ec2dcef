"""Other tools that start a machine, on the same image, kernel, memory and processors, each installed into a root of its own.

None is told more than it has to be to run here: no KVM, a tap that is there, the seed's three documents.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from laboratory.namespaces import MS_BIND, MS_REC, ip, mount

from bench.machines import ADDRESS, GATEWAY, find_facts, make_documents
from bench.place import DISK, MEMORY, ROOT, VCPUS, Place
from bench.prober import Way, watch
from ktrdr_vm.gather import MACHINE
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.plan.domain_xml import EMULATED_CPU, make_kernel_arguments

Step = Callable[[Place], dict[str, float]]

# Where they are installed; kept for the next run.
PLACES = ROOT / ".bench"
SUITE = "bookworm"
LIMIT_S = 240.0
# Debian packages of each root.
_PACKAGES = {"virt-install": ["virtinst", "xorriso", "qemu-utils"]}
# Those that are not driven here yet, each with the reason.
_NOT_DRIVEN = {
    "debvm-run": "it wants a file system labelled debvm with kernel, initrd and login inside, so our image would be another one",
    "virt-lightning": "it boots an image's own boot loader from a pool of its own, and our image has none",
    "vagrant-libvirt": "it starts boxes only, and no box of our image is made yet",
}


def install_peers() -> dict[str, str]:
    """Install what can be, before the namespaces are entered, which have no mirror. Peer to why it is left out, or nothing."""
    found = {peer: _install(peer, packages) for peer, packages in _PACKAGES.items()} | _NOT_DRIVEN
    for peer, reason in found.items():
        if reason:
            print(f"peer {peer} is skipped: {reason}", file=sys.stderr, flush=True)
    return found


def _install(peer: str, packages: list[str]) -> str:
    root = PLACES / peer
    if (root / ".complete").exists():
        return ""
    shutil.rmtree(root, ignore_errors=True)
    PLACES.mkdir(exist_ok=True)
    argv = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(packages)}", SUITE, str(root)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        return f"it does not install: {' '.join(done.stderr.strip().splitlines()[-1:])}"
    (root / ".complete").touch()
    return ""


def find_peers(installed: dict[str, str]) -> dict[str, Step]:
    """The steps of those that can be measured."""
    steps: dict[str, Step] = {"virt-install": virt_install}
    return {name: step for name, step in steps.items() if not installed[name]}


def virt_install(place: Place) -> dict[str, float]:
    """`virt-install --import --cloud-init`, with the tap as its network."""
    root, folder = PLACES / "virt-install", place.lab.scratch / "virt-install"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711)
    # Its own folder for seeds, which its package's scripts make where libvirt is installed beside it.
    Path("/var/lib/libvirt/boot").mkdir(exist_ok=True)
    began = time.monotonic()
    login, documents, identity = make_documents(place, "virt-install")
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    disk = folder / "disk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", place.image.disk_format, "-b", place.image.disk, disk, f"{DISK}M"], check=True
    )
    for words in ("tuntap add dev peertap mode tap", f"addr add {GATEWAY}/30 dev peertap", "link set peertap up"):
        ip(words)
    seed = ",".join(f"{name}={folder / name}" for name in documents)
    boot = f"kernel={place.image.kernel},initrd={place.image.initrd},kernel_args={make_kernel_arguments(find_facts(place))}"
    argv = [
        "chroot", root, "virt-install", "--connect", "qemu:///system", "--name", "peer", "--virt-type", "qemu", "--machine", MACHINE,
        "--cpu", EMULATED_CPU, "--memory", MEMORY, "--vcpus", VCPUS, "--import", "--osinfo", "detect=off,require=off",
        "--disk", f"path={disk},format=qcow2,bus=virtio,cache=unsafe", "--boot", boot, "--cloud-init", seed,
        "--network", f"type=ethernet,target.dev=peertap,model=virtio,mac={identity.mac}", "--xml", "./devices/interface/target/@managed=no",
        "--graphics", "none", "--noautoconsole",
    ]  # fmt: skip
    libvirt = Libvirt().connect()
    try:
        with _bound(root, place):
            done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-1000:] + done.stdout[-500:])
        seen = watch(lambda: Way(ADDRESS, place.image.user, login), began, limit=LIMIT_S).wait()
    finally:
        for domain in [domain for domain in libvirt.listAllDomains() if domain.name() == "peer"]:
            if domain.isActive():
                domain.destroy()
            if domain.isPersistent():
                domain.undefine()
        for pool in libvirt.listAllStoragePools():
            if str(folder) in (ElementTree.fromstring(pool.XMLDesc()).findtext("./target/path") or ""):
                pool.destroy()
        ip("tuntap del dev peertap mode tap")
        for file in (place.image.disk, place.image.kernel, place.image.initrd):
            # libvirt gives what a domain opens to QEMU's user unless it is told not to, and nobody but root may own an image.
            os.chown(str(file), 0, 0)
    return {"virt-install.ssh": seen.ssh, "virt-install.docker": seen.docker, "virt-install.ready": seen.ready}


@contextmanager
def _bound(root: Path, place: Place) -> Iterator[None]:
    """What the tool and libvirtd must both see stands at the same path in its root, for as long as it is used."""
    bound = []
    try:
        for path in ("/proc", "/dev", "/sys", "/run/libvirt", "/var/lib/libvirt", str(place.lab.home.root)):
            target = root / path.lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            mount(path, target, flags=MS_BIND | MS_REC)
            bound.append(target)
        yield
    finally:
        for target in reversed(bound):
            subprocess.run(["umount", "-l", "-R", target], check=True, timeout=20)
