"""`debvm-run`, a script over QEMU. It takes kernel and initrd out of an ext4 file system that has both inside, so that
is the form of an image it gets: for it the stock image has no boot loader. It writes to its image unless QEMU is told
`-snapshot`, which its manual shows.

Its own network is QEMU's user mode, whose forwarded port answers before the guest does; so that the prober can ask it
as it asks all others, a tap is added beside it. Its accelerator falls back by itself; the processor would be the host's
where /dev/kvm can be written.
"""

from __future__ import annotations

import os
import time

from bench.machines import find_facts, make_documents
from bench.peers.drive import TAP, bound, make_folder, make_name, name_samples, run_tool, tap
from bench.peers.images import find_forms
from bench.peers.install import PLACES
from bench.place import DISK, MEMORY, VCPUS, Place
from ktrdr_vm.instance.resources.seed import make_seed
from ktrdr_vm.plan.domain_xml import EMULATED_CPU, make_kernel_arguments
from ktrdr_vm.plan.guard_interface import GUEST_MAC

PEER = "debvm-run"


def measure(place: Place, *, stock: bool) -> dict[str, float]:
    folder, tree = make_folder(place, make_name(PEER, stock=stock)), find_forms(place.image, stock=stock).tree
    facts = find_facts(place)
    emulated = ["-machine", "accel=tcg", "-cpu", f"{EMULATED_CPU},-vmx,-svm"] if facts.accelerator == "tcg" else []
    login, documents = make_documents(place, PEER)
    # It takes raw images alone, so the disk is as large as the others' before; sparse, and grown into at boot.
    os.truncate(tree, DISK << 20)
    with tap() as make_way, bound(PLACES / PEER) as chroot:
        began = time.monotonic()
        (folder / "seed.iso").write_bytes(make_seed(documents))
        argv = [
            *chroot, "debvm-run", "--image", tree, "--", "-snapshot",
            *emulated, "-m", MEMORY, "-smp", VCPUS,
            *([] if stock else ["-append", make_kernel_arguments(facts)]),
            "-drive", f"file={folder}/seed.iso,if=virtio,format=raw,readonly=on",
            "-netdev", f"tap,id=outside,ifname={TAP},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=outside,mac={GUEST_MAC}",
        ]  # fmt: skip
        seen = run_tool(argv, folder, began, make_way(place.image.user, login), stays=True)
    return name_samples(PEER, seen, stock=stock)
