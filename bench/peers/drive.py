"""What every peer needs: a root to run in, a network card's other end, one outside prober, and nothing left of it
afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laboratory.lab import LAB_HOME
from laboratory.namespaces import MS_BIND, MS_REC, ip, mount

from bench.machines import ADDRESS, GATEWAY
from bench.peers.install import make_wrapper
from bench.place import Place
from bench.prober import Watch, Way, watch
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.process import find_program

# The stock image takes minutes in emulation.
LIMIT_S = 600.0
TAP = "peertap"


def make_name(peer: str, *, stock: bool) -> str:
    return f"{peer}.stock" if stock else peer


def name_samples(peer: str, seen: Watch, *, stock: bool) -> dict[str, float]:
    name = make_name(peer, stock=stock)
    return {f"{name}.ssh": seen.ssh, f"{name}.docker": seen.docker, f"{name}.ready": seen.ready}


def make_folder(place: Place, name: str) -> Path:
    """Empty, and where QEMU's own user may enter."""
    folder = place.lab.scratch / "peers" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(mode=0o711, exist_ok=True)
    folder.mkdir(mode=0o711)
    return folder


def run_tool(
    argv: list[Any], folder: Path, began: float, find: Callable[[], Way | None], *, stays: bool = False, **more: Any
) -> Watch:
    """Start the tool and the prober beside each other; wait for both. A tool that `stays` is ended when its guest has
    answered."""
    log = folder / "said.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            **more,
        )

        def find_while_running() -> Way | None:
            if process.poll() is not None and (stays or process.returncode != 0):
                raise RuntimeError(
                    f"{argv[0]} ended with {process.returncode}: {log.read_text(errors='replace')[-1500:]}"
                )
            return find()

        try:
            seen = watch(find_while_running, began, limit=LIMIT_S).wait()
            if not stays:
                process.wait(LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    return seen


@contextmanager
def tap() -> Iterator[Callable[[str, str], Callable[[], Way]]]:
    """The host's end of a network card, with the address that the seed names as gateway."""
    for words in (f"tuntap add dev {TAP} mode tap", f"addr add {GATEWAY}/30 dev {TAP}", f"link set {TAP} up"):
        ip(words)
    try:
        yield lambda user, login: lambda: Way(ADDRESS, user, login)
    finally:
        # Not `tuntap del`, which fails while the QEMU that a tool started is still ending.
        ip(f"link del dev {TAP}")


@contextmanager
def bound(root: Path) -> Iterator[list[Any]]:
    """What the tool and libvirtd must both see stands at the same path in its root, for as long as it is used. What
    argv begins with."""
    made = []
    try:
        for path in ("/proc", "/dev", "/sys", "/run/libvirt", "/var/lib/libvirt", str(LAB_HOME)):
            target = root / path.lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            mount(path, target, flags=MS_BIND | MS_REC)
            made.append(target)
        yield ["chroot", root]
    finally:
        for target in reversed(made):
            subprocess.run(["umount", "-l", "-R", target], check=True, timeout=20)


@contextmanager
def dnsmasq(folder: Path) -> Iterator[None]:
    """libvirt's networks want dnsmasq. Where the host has none, that of the tools stands beside the host's programs, in
    this namespace."""
    if find_program("dnsmasq") is not None:
        yield
        return
    programs = folder / "sbin"
    programs.mkdir()
    make_wrapper(programs, "dnsmasq", "usr/sbin/dnsmasq")
    mount("bench", "/usr/sbin", "overlay", 0, f"lowerdir={programs}:/usr/sbin")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", "/usr/sbin"], check=True, timeout=20)


@contextmanager
def left_as_found(*files: Path) -> Iterator[Any]:
    """A connection to libvirt. Domains, networks and pools that were not there before are gone afterwards, and `files`
    are root's again.

    libvirt gives what a domain opens to QEMU's user unless it is told not to, and nobody but root may own an image.
    """
    libvirt = Libvirt().connect()
    listers = (libvirt.listAllDomains, libvirt.listAllNetworks, libvirt.listAllStoragePools)
    before = [{one.UUIDString() for one in lister()} for lister in listers]
    try:
        yield libvirt
    finally:
        for lister, known in zip(listers, before, strict=True):
            for one in lister():
                if one.UUIDString() not in known:
                    _remove(one)
        for file in files:
            os.chown(file, 0, 0)


def _remove(one: Any) -> None:
    persistent = one.isPersistent()
    if one.isActive():
        one.destroy()
    if persistent:
        one.undefine()


def wait_for_lease(libvirt: Any, network: str, mac: str, user: str, login: str) -> Callable[[], Way | None]:
    """The way in as soon as the network has given the guest an address."""

    def find() -> Way | None:
        for found in libvirt.listAllNetworks():
            if found.name() == network and found.isActive():
                for lease in found.DHCPLeases(mac):
                    return Way(lease["ipaddr"], user, login)
        return None

    return find
