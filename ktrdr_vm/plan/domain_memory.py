"""A domain's memory: whose pages they are, who else sees them, and room for what approvals may add.

A template's memory is a file. A fork maps it copy-on-write, unless a daemon of virtiofs must see it as well: then it is memory of its
own that is filled from the file before the machine goes on.
"""

from __future__ import annotations

import json
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ktrdr_vm.plan.facts import Lending
from ktrdr_vm.profile.model import Size

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
# QEMU's name of the device that lends memory, and the size of its steps: a block of memory as Linux takes and gives it.
LENT_MEMORY = "ktrdr-lent"
LENT_STEP = 128
_BACKEND = "ktrdr.ram"

ElementTree.register_namespace("qemu", QEMU_NAMESPACE)


def find_lendable(size: Size, lending: Lending) -> int:
    """MiB that can be added to a machine of this size, in whole steps."""
    return max(0, lending.memory - size.memory) // LENT_STEP * LENT_STEP


def render_commandline(
    size: Size, lending: Lending, *, port: int, template: str = "", frozen: bool = False, shared: bool = False
) -> Element:
    """What libvirt has no word for. `template` is the file of a template's memory; `frozen` is the template itself.

    `port` is the number of the root port that lent memory is plugged into.
    """
    words: list[str] = []
    if template:
        # libvirt knows memory in a file only with names of its own choice, so the backend is named to QEMU directly. Without
        # seals it can be told from the one that libvirt makes besides.
        kind = f"memory-backend-memfd,id={_BACKEND},size={size.memory}M,share=on,seal=off"
        if not shared:
            share = "on" if frozen else "off"
            kind = f"memory-backend-file,id={_BACKEND},size={size.memory}M,mem-path={template},share={share}"
        words += ["-object", kind, "-machine", f"memory-backend={_BACKEND}"]
        words += [] if frozen else ["-incoming", "defer"]
    lendable = find_lendable(size, lending)
    if lendable:
        # It stands in the machine from its start, with nothing in it: this QEMU cannot unplug it, and a saved state must find it.
        words += ["-m", f"slots=1,maxmem={size.memory + lendable}M"]
        backend = "memory-backend-memfd,share=on" if shared else "memory-backend-ram,reserve=off"
        words += ["-object", f"{backend},id={LENT_MEMORY}.ram,size={lendable}M"]
        device = {"driver": "virtio-mem-pci", "id": LENT_MEMORY, "memdev": f"{LENT_MEMORY}.ram", "requested-size": 0, "bus": f"pci.{port}"}
        # As JSON, like libvirt's own devices: QEMU makes those of the other form first, before there is a port.
        words += ["-device", json.dumps(device)]
    line = Element(f"{{{QEMU_NAMESPACE}}}commandline")
    for word in words:
        ElementTree.SubElement(line, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    return line


def drop_incoming(root: Element) -> None:
    """A fork waits for its template's state at its first start, and never again."""
    for line in root.findall(f"{{{QEMU_NAMESPACE}}}commandline"):
        words = list(line)
        for first, second in pairwise(words):
            if first.get("value") == "-incoming":
                line.remove(first)
                line.remove(second)
