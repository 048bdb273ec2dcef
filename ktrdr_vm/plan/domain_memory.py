"""The memory of a domain: its backend, sharing, and the reserve for hot-plug.

The memory of a template is a file. A fork maps it copy-on-write, unless virtiofsd needs access: then it has separate
memory, which is filled from the file before the VM continues.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ktrdr_vm.plan.facts import HotplugReserve, TemplateFacts
from ktrdr_vm.profile.model import Size

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
# The id of the virtio-mem device in QEMU, which saved VMs contain, and its block size, which is that of memory hot-plug
# in Linux.
HOTPLUG_MEMORY = "ktrdr-lent"
HOTPLUG_STEP = 128
_BACKEND = "ktrdr.ram"
# The first version whose memory-backend-file has `rom`: RAM of a fork over a file that is opened for reading only.
_READONLY_SINCE = (8, 2)

ElementTree.register_namespace("qemu", QEMU_NAMESPACE)


def find_hotpluggable(size: Size, reserve: HotplugReserve) -> int:
    """MiB that can be hot-plugged into a VM of this size, in whole blocks."""
    return max(0, reserve.memory - size.memory) // HOTPLUG_STEP * HOTPLUG_STEP


def maps_readonly(version: str) -> bool:
    """True if this QEMU, by the first line of `--version`, needs no right to write to the memory that a fork maps."""
    found = re.search(r"version (\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= _READONLY_SINCE


def render_commandline(
    size: Size,
    reserve: HotplugReserve,
    *,
    port: int,
    template: TemplateFacts | None = None,
    frozen: bool = False,
    shared: bool = False,
) -> Element:
    """QEMU arguments that libvirt does not support. `template` is one whose memory is used; `frozen` is for the
    template itself.

    `port` is the number of the root port of the virtio-mem device.
    """
    words: list[str] = []
    if template:
        # libvirt supports memory in a file only with names that it chooses, so the backend is an argument of QEMU.
        # Without seals it can be distinguished from the one that libvirt adds.
        kind = f"memory-backend-memfd,id={_BACKEND},size={size.memory}M,share=on,seal=off"
        if not shared:
            share = "on" if frozen else "off"
            kind = f"memory-backend-file,id={_BACKEND},size={size.memory}M,mem-path={template.memory},share={share}"
            kind += ",readonly=on,rom=off" if template.readonly and not frozen else ""
        words += ["-object", kind, "-machine", f"memory-backend={_BACKEND}"]
        words += [] if frozen else ["-incoming", "defer"]
    extra = find_hotpluggable(size, reserve)
    if extra:
        # Present from the start, with size 0: this QEMU cannot unplug it, and a saved state requires it.
        words += ["-m", f"slots=1,maxmem={size.memory + extra}M"]
        backend = "memory-backend-memfd,share=on" if shared else "memory-backend-ram,reserve=off"
        words += ["-object", f"{backend},id={HOTPLUG_MEMORY}.ram,size={extra}M"]
        device = {
            "driver": "virtio-mem-pci",
            "id": HOTPLUG_MEMORY,
            "memdev": f"{HOTPLUG_MEMORY}.ram",
            "requested-size": 0,
            "bus": f"pci.{port}",
        }
        # As JSON, like the devices of libvirt: QEMU creates devices in the other syntax first, before the port exists.
        words += ["-device", json.dumps(device)]
    line = Element(f"{{{QEMU_NAMESPACE}}}commandline")
    for word in words:
        ElementTree.SubElement(line, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    return line


def drop_incoming(root: Element) -> None:
    """Remove the arguments by which a fork waits for the state of its template, which it does at its first start
    only."""
    for line in root.findall(f"{{{QEMU_NAMESPACE}}}commandline"):
        words = list(line)
        for first, second in pairwise(words):
            if first.get("value") == "-incoming":
                line.remove(first)
                line.remove(second)
