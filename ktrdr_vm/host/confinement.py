"""AppArmor around the QEMU of one domain: what it may open besides what libvirt knows of.

libvirt runs each domain in a profile of its own, `libvirt-<uuid>`, and lists in it what stands in the domain's XML: disks, kernels, not
memory in a file, and no vhost-net where the NIC comes later. A profile that is there already is kept, and only the list that it includes
is written anew; so ours is made from libvirt's own template, with a line for each file of this one domain (docs/adr/0011).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.libvirt import Libvirt

PROFILES = Path("/etc/apparmor.d/libvirt")
_NAME = "\nprofile LIBVIRT_TEMPLATE"
_END = "\n}"
# QEMU's virtio-mem, which takes loans of memory, asks for the size of huge pages; libvirt's own template refuses it on Debian 12.
_ALWAYS = ('"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size" r,',)


def is_confined(libvirt: Libvirt) -> bool:
    """True where libvirt puts QEMU under AppArmor, as it says itself."""
    capabilities = ElementTree.fromstring(libvirt.read_capabilities())  # noqa: S314 - libvirt's own
    return any(model.text == "apparmor" for model in capabilities.iterfind("./host/secmodel/model"))


def find_fork_obstacle(libvirt: Libvirt) -> str:
    """Why QEMU could not be given a template's memory on this host, in a sentence, or nothing. `doctor` and `apply` say the same."""
    if not is_confined(libvirt):
        return ""
    try:
        _render("libvirt-x", ())
    except HostError as error:
        return f"AppArmor keeps QEMU from the memory of templates: {error.message}"
    if not os.access(PROFILES, os.W_OK):
        return f"AppArmor keeps QEMU from the memory of templates: {PROFILES} cannot be written"
    return ""


def write_profile(libvirt: Libvirt, uuid: str, rules: Iterable[str]) -> None:
    """Let the domain of that UUID, which does not run, do what the rules say: lines of AppArmor. Nothing where it confines nobody."""
    if not is_confined(libvirt):
        return
    path = _find_path(uuid)
    text = _render(path.name, tuple(rules))
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.rename(path)
    except OSError as error:
        raise HostError(f"the AppArmor profile of the domain cannot be written: {error.strerror}", where=str(path), hint=_HINT) from None


def make_memory_rules(memory: str, state: str, *, freeze: bool = False, vhost: bool = False) -> tuple[str, ...]:
    """What a template (`freeze`) or a fork of it must open. QEMU before 8.2 opens memory for writing also where it maps it privately."""
    rules = (f'"{memory}" rwk,', f'"{state}" {"rw" if freeze else "r"},')
    return (*rules, '"/dev/vhost-net" rw,') if vhost else rules


def has_profile(uuid: str) -> bool:
    """True when a profile of the domain, or a part of it, lies on the disk. libvirt leaves its own there for ever."""
    return any(path.exists() for path in _list_files(uuid))


def remove_profile(uuid: str) -> None:
    """Ours or libvirt's own, with the list beside it. The domain has ended, and with it what the kernel knew of the profile."""
    for path in _list_files(uuid):
        path.unlink(missing_ok=True)


def _find_path(uuid: str) -> Path:
    return PROFILES / f"libvirt-{uuid}"


def _list_files(uuid: str) -> tuple[Path, ...]:
    path = _find_path(uuid)
    return path, path.with_name(f"{path.name}.files"), path.with_name(f".{path.name}.new")


def _render(name: str, rules: tuple[str, ...]) -> str:
    """From libvirt's template on this host, which its owner may have changed."""
    source = PROFILES / "TEMPLATE.qemu"
    try:
        text = source.read_text()
    except OSError as error:
        raise HostError(f"{source} cannot be read: {error.strerror}", where=str(source), hint=_HINT) from None
    head, end, tail = text.rpartition(_END)
    if text.count(_NAME) != 1 or not end:
        raise HostError(f"{source} is not as libvirt ships it", where=str(source), hint=_HINT)
    lines = "".join(f"\n  {line}" for line in (*_ALWAYS, *rules, f"#include <libvirt/{name}.files>"))
    return head.replace(_NAME, f"\nprofile {name}") + lines + end + tail


_HINT = "install libvirt-daemon-system again, or use `apply --cold`, which boots without a template"
