"""`virt-install --import --cloud-init`, on a tap. Ours with kernel and initrd, the stock image by its own boot
loader."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from bench.machines import find_facts, make_documents
from bench.peers.drive import TAP, bound, left_as_found, make_folder, make_name, name_samples, run_tool, tap
from bench.peers.images import find_forms
from bench.peers.install import PLACES
from bench.place import DISK, MEMORY, VCPUS, Place
from ktrdr_vm.inputs.resolve import MACHINE
from ktrdr_vm.plan.domain_xml import EMULATED_CPU, make_kernel_arguments
from ktrdr_vm.plan.guard_interface import GUEST_MAC

PEER = "virt-install"


def measure(place: Place, *, stock: bool) -> dict[str, float]:
    folder, facts = make_folder(place, make_name(PEER, stock=stock)), find_facts(place)
    # Its own folder for seeds, which its package's scripts make where libvirt is installed beside it.
    Path("/var/lib/libvirt/boot").mkdir(exist_ok=True)
    assert place.image.kernel is not None and place.image.initrd is not None
    base, kind = (
        (find_forms(place.image, stock=True).disk, "qcow2") if stock else (place.image.disk, place.image.disk_format)
    )
    kind_of_machine, cpu = ("qemu", EMULATED_CPU) if facts.accelerator == "tcg" else ("kvm", "host-model")
    login, documents = make_documents(place, PEER)
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    with tap() as make_way, bound(PLACES / PEER) as chroot, left_as_found(base, place.image.kernel, place.image.initrd):
        began = time.monotonic()
        disk = folder / "disk"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", base, disk, f"{DISK}M"], check=True
        )
        direct = f"kernel={place.image.kernel},initrd={place.image.initrd},kernel_args={make_kernel_arguments(facts)}"
        argv = [
            *chroot,
            "virt-install",
            "--connect",
            "qemu:///system",
            "--name",
            "peer",
            "--virt-type",
            kind_of_machine,
            "--machine",
            MACHINE,
            "--cpu",
            cpu,
            "--memory",
            MEMORY,
            "--vcpus",
            VCPUS,
            "--import",
            "--osinfo",
            "detect=off,require=off",
            "--disk",
            f"path={disk},format=qcow2,bus=virtio,cache=unsafe",
            *([] if stock else ["--boot", direct]),
            "--cloud-init",
            ",".join(f"{name}={folder / name}" for name in documents),
            "--network",
            f"type=ethernet,target.dev={TAP},model=virtio,mac={GUEST_MAC}",
            "--xml",
            "./devices/interface/target/@managed=no",
            "--graphics",
            "none",
            "--noautoconsole",
        ]
        seen = run_tool(argv, folder, began, make_way(place.image.user, login))
    return name_samples(PEER, seen, stock=stock)
