"""What the world sees of the file system: the host's, with its own /run and folders of libvirt.

The daemons and QEMU see less: /dev has no device but those that QEMU uses, and of the person's home only the state
directory is there. Their users are sub-ids, which could not enter a home of mode 0700, and need nothing else of it.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.cgroups import ROOT as CGROUPS
from ktrdr_vm.world.layout import DAEMONS

_NEW_MOUNTS = 0x00020000
_NOSUID, _NODEV, _BIND, _REC, _SLAVE, _SHARED = 2, 4, 4096, 16384, 1 << 19, 1 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)

_OWN = ("/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
# Of the host's /run: what is the daemons' own in a world, the names of network namespaces, and the system bus. libvirtd
# registers VMs with systemd-machined over it, which refuses everybody but root, and then no VM starts.
_NOT_TAKEN = frozenset({"dbus", "libvirt", "netns", "ktrdr-vm", "virtlogd.pid", "libvirtd.pid"})
# libvirtd checks each mount of huge pages that the kernel lists, so it must exist, though it is not used.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun", "vhost-net", "hugepages")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


def make_view(home: Path, settings: Path, *, delegated: bool) -> None:
    """Set up this process's own mount namespace. `settings` becomes /etc/libvirt, and `home` a mount that the daemons
    share. `delegated`: /sys/fs/cgroup is what the cgroup namespace of this process contains."""
    _mount("none", Path("/"), flags=_REC | _SLAVE)
    run = os.open("/run", os.O_PATH | os.O_DIRECTORY)
    _mount("ktrdr-vm", Path("/run"), "tmpfs", _NOSUID | _NODEV, "mode=0755")
    for one in sorted(Path(f"/proc/self/fd/{run}").iterdir()):
        if one.name not in _NOT_TAKEN:
            _take(one, Path("/run", one.name))
    os.close(run)
    for folder in ("libvirt", "netns", "ktrdr-vm"):
        Path("/run", folder).mkdir(mode=0o755)
    for folder in _OWN:
        _mount("ktrdr-vm", Path(folder), "tmpfs", _NOSUID | _NODEV, "mode=0755")
    for source, target in ((settings, Path("/etc/libvirt")), (home, home)):
        _mount(str(source), target, flags=_BIND | _REC)
    _mount("none", home, flags=_SHARED)
    if delegated:
        # The kernel refuses a file system on top of the same one: that of the host is of the same tree.
        _mount("ktrdr-vm", CGROUPS, "tmpfs", _NOSUID | _NODEV, "mode=0755")
        _mount("ktrdr-vm", CGROUPS, "cgroup2", _NOSUID | _NODEV)


def make_daemons_view(home: Path, person: Path, *, kvm: bool) -> None:
    """The same for a process of the daemons: with a /dev of its own, and nothing of the person's home but the state
    directory."""
    _unshare()
    descriptor = os.open(home, os.O_PATH | os.O_DIRECTORY)
    covered = _find_closed(home, person)
    for folder in covered:
        _mount("ktrdr-vm", folder, "tmpfs", _NOSUID | _NODEV, "mode=0711")
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    for folder in home.parents:
        if any(one in folder.parents for one in covered):
            # Made just now, in the tmpfs, with the umask of the person.
            folder.chmod(0o711)
    _mount(f"/proc/self/fd/{descriptor}", home, flags=_BIND | _REC)
    os.close(descriptor)
    _make_devices(kvm=kvm)


def name_daemons_view(pid: int) -> None:
    """Give the mount namespace of a process a name, for programs that are started in it.

    A link and no mount: since Linux 6.17 the kernel refuses to mount some newer mount namespaces.
    """
    DAEMONS.unlink(missing_ok=True)
    DAEMONS.symlink_to(f"/proc/{pid}/ns/mnt")


def _find_closed(home: Path, person: Path) -> list[Path]:
    """The outermost folder on the way to the state directory that sub-ids cannot enter, and the person's home."""
    closed = next((one for one in (*reversed(home.parents), home) if not one.stat().st_mode & 0o001), None)
    found = [person] if person.is_dir() and person != Path("/") else []
    if closed is not None and not any(closed == one or one in closed.parents for one in found):
        found = [closed, *(one for one in found if closed not in one.parents)]
    return found


def _make_devices(*, kvm: bool) -> None:
    """Nodes cannot be made without root, so those of the host are bound."""
    devices = os.open("/dev", os.O_PATH | os.O_DIRECTORY)
    _mount("ktrdr-vm", Path("/dev"), "tmpfs", _NOSUID, "mode=0755")
    for name in (*_DEVICES, *(("kvm",) if kvm else ())):
        source, target = Path(f"/proc/self/fd/{devices}", name), Path("/dev", name)
        if source.exists():
            target.parent.mkdir(exist_ok=True)
            _take(source, target)
    os.close(devices)
    for name in ("pts", "shm"):
        Path("/dev", name).mkdir()
    _mount("ktrdr-vm", Path("/dev/pts"), "devpts", _NOSUID, "newinstance,ptmxmode=0666,mode=0620")
    _mount("ktrdr-vm", Path("/dev/shm"), "tmpfs", _NOSUID | _NODEV, "mode=1777")
    for name, leads_to in _LINKS.items():
        Path("/dev", name).symlink_to(leads_to)


def _take(source: Path, target: Path) -> None:
    """Bind a file, folder or node of the host; what this process may not see is left out."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    with suppress(OSError, HostError):
        if source.is_dir():
            target.mkdir()
        else:
            target.touch()
        _mount(str(source), target, flags=_BIND | _REC)


def _unshare() -> None:
    if _LIBC.unshare(_NEW_MOUNTS) != 0:
        raise HostError(
            f"no mount namespace can be made: {os.strerror(ctypes.get_errno())}", where="unshare", hint=_HINT
        )


def _mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = [os.fsencode(source), os.fsencode(target), kind.encode() or None]
    if _LIBC.mount(*words, ctypes.c_ulong(flags), options.encode() or None) != 0:
        raise HostError(
            f"{kind or source} cannot be mounted: {os.strerror(ctypes.get_errno())}", where=str(target), hint=_HINT
        )


_HINT = "`ktrdr-vm doctor` checks whether this host allows user namespaces; or use sudo"
