"""`vagrant up` of a box of the image, in a pool of its own. Ours with kernel and initrd, the stock image by its own
boot loader.

A box usually has user, key and network inside. Ours and the stock image have cloud-init instead, so the machine gets a
seed as its second disk, with DHCP as vagrant-libvirt's management network wants it; Vagrant is told the key.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import yaml

from bench.machines import find_facts, make_documents
from bench.peers.drive import (
    bound,
    dnsmasq,
    left_as_found,
    make_folder,
    make_name,
    name_samples,
    run_tool,
    wait_for_lease,
)
from bench.peers.images import find_forms
from bench.peers.install import PLACES
from bench.place import DISK, MEMORY, VCPUS, Place
from ktrdr_vm.inputs.resolve import MACHINE
from ktrdr_vm.instance.resources.seed import make_seed
from ktrdr_vm.plan.domain_xml import EMULATED_CPU, make_kernel_arguments
from ktrdr_vm.plan.guard_interface import GUEST_MAC

PEER = "vagrant-libvirt"
_NETWORK, _POOL = "vagrant-libvirt", "bench-vagrant"
_POOL_XML = f"<pool type='dir'><name>{_POOL}</name><target><path>{{}}</path></target></pool>"
_VAGRANTFILE = """\
Vagrant.configure("2") do |config|
  config.vm.box = "bench"
  config.vm.box_check_update = false
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.ssh.username = "{user}"
  config.ssh.private_key_path = "{folder}/key"
  config.ssh.insert_key = false
  config.vm.boot_timeout = 600
  config.vm.provider :libvirt do |libvirt|
    libvirt.uri = "qemu:///system"
    libvirt.driver = "{driver}"
    libvirt.cpu_mode = "{mode}"
    libvirt.cpu_model = "{cpu}"
    libvirt.machine_type = "{machine}"
    libvirt.memory = {memory}
    libvirt.cpus = {vcpus}
    libvirt.graphics_type = "none"
    libvirt.disk_bus = "virtio"
    libvirt.disk_driver :cache => "unsafe"
    libvirt.storage_pool_name = "{pool}"
    libvirt.management_network_mac = "{mac}"
    libvirt.storage :file, :device => :cdrom, :bus => "sata", :dev => "sda", :path => "{folder}/seed.iso"
{boot}  end
end
"""


def measure(place: Place, *, stock: bool) -> dict[str, float]:
    folder, facts = make_folder(place, make_name(PEER, stock=stock)), find_facts(place)
    # With any mode but `custom` the model is not looked at.
    driver, mode = ("qemu", "custom") if facts.accelerator == "tcg" else ("kvm", "host-model")
    assert place.image.kernel is not None and place.image.initrd is not None
    login, documents = make_documents(place, PEER)
    network = {"version": 2, "ethernets": {"guest": {"match": {"macaddress": GUEST_MAC}, "dhcp4": True}}}
    documents["network-config"] = yaml.safe_dump(network).encode()
    (folder / "key").write_text(login)
    (folder / "key").chmod(0o600)
    boot = "" if stock else (
        f'    libvirt.kernel = "{place.image.kernel}"\n    libvirt.initrd = "{place.image.initrd}"\n'
        f'    libvirt.cmd_line = "{make_kernel_arguments(facts)}"\n'
    )  # fmt: skip
    words = {
        "user": place.image.user,
        "folder": folder,
        "driver": driver,
        "mode": mode,
        "cpu": EMULATED_CPU,
        "machine": MACHINE,
        "memory": MEMORY,
        "vcpus": VCPUS,
        "pool": _POOL,
        "mac": GUEST_MAC,
        "boot": boot,
    }
    (folder / "Vagrantfile").write_text(_VAGRANTFILE.format(**words))
    base = find_forms(place.image, stock=True).disk if stock else place.image.disk
    _make_box(folder, base, "qcow2" if stock else place.image.disk_format)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "VAGRANT_HOME": str(folder / "home"),
        "VAGRANT_CWD": str(folder),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
    }
    files = (base, place.image.kernel, place.image.initrd)
    with dnsmasq(folder), bound(PLACES / PEER) as chroot, left_as_found(*files) as libvirt:
        libvirt.storagePoolCreateXML(_POOL_XML.format(folder / "pool"))
        began = time.monotonic()
        (folder / "seed.iso").write_bytes(make_seed(documents))
        find = wait_for_lease(libvirt, _NETWORK, GUEST_MAC, place.image.user, login)
        seen = run_tool([*chroot, "vagrant", "up"], folder, began, find, env=environment)
    return name_samples(PEER, seen, stock=stock)


def _make_box(folder: Path, base: Path, kind: str) -> None:
    """As `vagrant box add` and the first `up` leave them: the box in Vagrant's home, its disk in the pool. A thin one
    on the image's."""
    box, pool = folder / "home/boxes/bench/1.0/libvirt", folder / "pool"
    box.mkdir(parents=True)
    pool.mkdir(mode=0o711)
    (box / "metadata.json").write_text(
        json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": DISK // 1024})
    )
    (box / "Vagrantfile").write_text('Vagrant.configure("2") do |config|\nend\n')
    image = box / "box.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", base, image, f"{DISK}M"], check=True)
    image.chmod(0o644)
    os.link(image, pool / "bench_vagrant_box_image_1.0_box.img")
