"""`vl up`. It boots an image's own boot loader from a pool of its own on machine `pc`, with its own network: ours is
given GRUB for it.

It knows no way to say cache, kernel or disk format; those are its own. It writes cloud-init's documents itself.
"""

from __future__ import annotations

import os
import time

import yaml

from bench.machines import find_facts
from bench.peers.drive import dnsmasq, left_as_found, make_folder, make_name, name_samples, run_tool
from bench.peers.images import find_forms
from bench.peers.install import PLACES, make_wrapper
from bench.place import DISK, MEMORY, VCPUS, Place
from bench.prober import Way
from ktrdr_vm.host.keys import generate_keypair
from ktrdr_vm.plan.domain_xml import EMULATED_CPU

PEER = "virt-lightning"
# The first one that it gives, in the network that it makes.
_ADDRESS = "192.168.123.5"
_POOL = "<pool type='dir'><name>virt-lightning</name><target><path>{}</path></target></pool>"
_EMULATED = f"<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{EMULATED_CPU}</model></cpu>"


def measure(place: Place, *, stock: bool) -> dict[str, float]:
    folder, disk = make_folder(place, make_name(PEER, stock=stock)), find_forms(place.image, stock=stock).disk
    pool, programs = folder / "pool", folder / "bin"
    programs.mkdir()
    make_wrapper(programs, "genisoimage", "usr/bin/genisoimage")
    (pool / "upstream").mkdir(parents=True)
    os.link(disk, pool / "upstream" / "bench.qcow2")
    login, login_public = generate_keypair()
    (folder / "key.pub").write_text(login_public + "\n")
    machine = {
        "name": "peer",
        "distro": "bench",
        "memory": MEMORY,
        "vcpus": VCPUS,
        "username": place.image.user,
        "disks": [{"size": DISK // 1024}],
        "metadata_format": {"provider": "nocloud"},
        "ssh_key_file": str(folder / "key.pub"),
    }
    if not stock:
        # Our image makes no host keys of its own, and these documents bring none; what lies beside an image says what
        # else it needs.
        (pool / "upstream" / "bench.yaml").write_text(yaml.safe_dump({"write_files": _make_host_key()}))
    (folder / "machines.yaml").write_text(yaml.safe_dump([machine]))
    environment = {
        "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "BENCH_POOL": str(pool),
        "BENCH_DOMAIN_TYPE": "qemu",
        "BENCH_CPU": _EMULATED,
    }
    if find_facts(place).accelerator == "kvm":
        environment |= {"BENCH_DOMAIN_TYPE": "kvm", "BENCH_CPU": "<cpu mode='host-model' check='partial'/>"}
    with dnsmasq(folder), left_as_found(disk) as libvirt:
        libvirt.storagePoolCreateXML(_POOL.format(pool))
        began = time.monotonic()
        argv = [PLACES / PEER / "bin/vl", "up", "--virt-lightning-yaml", folder / "machines.yaml"]
        seen = run_tool(
            argv, folder, began, lambda: Way(_ADDRESS, place.image.user, login), env=environment, cwd=folder
        )
    return name_samples(PEER, seen, stock=stock)


def _make_host_key() -> list[dict[str, str]]:
    private, public = generate_keypair()
    place = "/etc/ssh/ssh_host_ed25519_key"
    return [
        {"path": place, "content": private, "permissions": "0600"},
        {"path": f"{place}.pub", "content": public, "permissions": "0644"},
    ]
