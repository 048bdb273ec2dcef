"""Network and mount namespaces: the test process enters its own, and makes more of them for the world around it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MNT_DETACH = 2
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18

_LIBC = ctypes.CDLL(None, use_errno=True)
RUN_NETNS = Path("/run/netns")


def _namespaces_of_the_machine() -> set[int]:
    """Where this process was started, and where process 1 lives, as far as one may ask."""
    found = set()
    for process in ("self", "1"):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{process}/ns/net").st_ino)
    return found


_OUTSIDE = _namespaces_of_the_machine()


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path | str, kind: str = "", flags: int = 0, options: str = "") -> None:
    raw = [text.encode() if text else None for text in (source, str(target), kind)]
    _call(_LIBC.mount(*raw, ctypes.c_ulong(flags), options.encode() or None), f"mount {kind or source} on {target}")


def ip(words: str, namespace: str = "") -> str:
    """`ip` with the words of a line, in a named namespace when one is given."""
    argv = ["ip", *(["-n", namespace] if namespace else []), *words.split()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def enter_own_namespaces() -> None:
    """For this process and everything it starts: no interface but lo, and mounts that nobody else sees."""
    _call(_LIBC.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    # /sys/class/net shows the namespace that mounted it; the cgroups beneath the old one are taken along.
    keep = Path("/run/netns")
    keep.mkdir(exist_ok=True)
    mount("/sys/fs/cgroup", keep, flags=MS_BIND | MS_REC)
    mount("lab", "/sys", "sysfs")
    mount(str(keep), "/sys/fs/cgroup", flags=MS_BIND | MS_REC)
    # libvirtd would find the cgroups at their first place too, which is covered next.
    _call(_LIBC.umount2(str(keep).encode(), MNT_DETACH), f"umount {keep}")
    mount("lab", RUN_NETNS, "tmpfs", options="mode=0755")
    ip("link set lo up")
    require_own_namespace()


def require_own_namespace() -> None:
    """Nothing is sent from the namespace that the machine itself lives in."""
    if os.stat("/proc/thread-self/ns/net").st_ino in _OUTSIDE:
        raise AssertionError(
            "the test process is in the machine's own network namespace; nothing may be sent from here"
        )


def make_namespace(name: str) -> str:
    require_own_namespace()
    ip(f"netns add {name}")
    ip("link set lo up", name)
    return name


def remove_namespace(name: str) -> None:
    ip(f"netns del {name}")


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread, and the threads that it starts, are in a named namespace. Sockets stay in the one they were made
    in."""
    require_own_namespace()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(RUN_NETNS / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_LIBC.setns(there, CLONE_NEWNET), f"setns {name}")
        try:
            yield
        finally:
            _call(_LIBC.setns(home, CLONE_NEWNET), "setns back")
    finally:
        os.close(home)
        os.close(there)


def hide(path: str, options: str = "mode=0755") -> None:
    """An empty folder of our own over one of the machine's, where there is one."""
    if Path(path).is_dir():
        mount("lab", path, "tmpfs", MS_NOSUID | MS_NODEV, options)
