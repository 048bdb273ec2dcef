"""The AppArmor profile for the QEMU process of one domain: files that it may open in addition to those that libvirt
allows.

libvirt runs each domain in its own profile, `libvirt-<uuid>`, with the files of the domain's XML: disks and kernels,
but not memory in a file. An existing profile is kept, and only the list that it includes is rewritten. Our profile is
therefore made from libvirt's template, with a line for each file of this domain (docs/adr/0011).
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
# QEMU's virtio-mem, which takes loans of memory, asks for the size of huge pages; libvirt's own template refuses it on
# Debian 12.
_ALWAYS = ('"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size" r,',)


def is_confined(libvirt: Libvirt) -> bool:
    """True if libvirt reports that it confines QEMU with AppArmor."""
    capabilities = ElementTree.fromstring(libvirt.read_capabilities())  # noqa: S314 - libvirt's own
    return any(model.text == "apparmor" for model in capabilities.iterfind("./host/secmodel/model"))


def find_fork_obstacle(libvirt: Libvirt) -> str:
    """The reason why QEMU cannot use the memory file of a template on this host, or an empty text; for `doctor` and
    `apply`."""
    if not is_confined(libvirt):
        return ""
    try:
        _render("libvirt-x", ())
    except HostError as error:
        return f"AppArmor denies QEMU the memory files of templates: {error.message}"
    if not os.access(PROFILES, os.W_OK):
        return f"AppArmor denies QEMU the memory files of templates: {PROFILES} cannot be written"
    return ""


def write_profile(libvirt: Libvirt, uuid: str, rules: Iterable[str]) -> None:
    """Allow the rules, lines of AppArmor, to the domain of that UUID, which must not run. No effect without
    AppArmor."""
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
        raise HostError(
            f"the AppArmor profile of the domain cannot be written: {error.strerror}", where=str(path), hint=_HINT
        ) from None


def make_memory_rules(memory: str, state: str, *, freeze: bool = False, readonly: bool = False) -> tuple[str, ...]:
    """The rules of a template (`freeze`) or of a fork. Unless `readonly`, QEMU opens memory for writing even if it maps
    it privately."""
    return f'"{memory}" {"r" if readonly and not freeze else "rw"}k,', f'"{state}" {"rw" if freeze else "r"},'


def has_profile(uuid: str) -> bool:
    """True if a profile of the domain, or a part of it, is on the disk. libvirt never removes its own."""
    return any(path.exists() for path in _list_files(uuid))


def remove_profile(uuid: str) -> None:
    """Remove the profile of the domain, ours or libvirt's, and its list. The domain has ended, so the kernel has
    unloaded the profile."""
    for path in _list_files(uuid):
        path.unlink(missing_ok=True)


def _find_path(uuid: str) -> Path:
    return PROFILES / f"libvirt-{uuid}"


def _list_files(uuid: str) -> tuple[Path, ...]:
    path = _find_path(uuid)
    return path, path.with_name(f"{path.name}.files"), path.with_name(f".{path.name}.new")


def _render(name: str, rules: tuple[str, ...]) -> str:
    """The profile, made from libvirt's template on this host, which the owner may have changed."""
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
