"""`ktrdr-vm` as on a Mac: no libvirt, `sys.platform` of Darwin, no /proc and no /sys, and none of Linux's own calls."""

from __future__ import annotations

import asyncio  # noqa: F401 - the standard library chooses by the platform at its import
import ctypes.util  # noqa: F401
import fcntl
import os
import resource
import selectors  # noqa: F401
import shutil  # noqa: F401
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import time
import urllib.request  # noqa: F401
import uuid  # noqa: F401
from typing import Any

_LINUX_ONLY = ("/proc", "/sys", "/dev/kvm")


class NoLibvirt:
    """Refuses to find the binding."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in ("libvirt", "libvirtmod", "libvirt_qemu"):
            raise ModuleNotFoundError(f"No module named {name!r}")


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """No file of Linux's own file systems is opened, and no program gets the path of one."""
    if event == "open" and isinstance(arguments[0], (str, bytes)) and os.fsdecode(arguments[0]).startswith(_LINUX_ONLY):
        raise FileNotFoundError(2, "there is no such file on a Mac", os.fsdecode(arguments[0]))
    if event == "subprocess.Popen":
        said = repr(arguments)
        assert "/proc/self" not in said, f"a program gets a path of /proc: {said}"
        assert arguments[1][0] not in ("prlimit", "setpriv"), f"{arguments[1][0]} is Linux's"
        assert not any("prlimit" in str(word) for word in arguments[1]), said


def become_mac() -> None:
    for module, names in (
        (os, "pipe2 memfd_create eventfd sched_getaffinity setns unshare O_PATH".split()),
        (time, ["CLOCK_BOOTTIME"]),
        (resource, ["prlimit"]),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    call = fcntl.fcntl
    read_link = os.readlink

    def fcntl_of_mac(descriptor: int, command: int, argument: Any = 0) -> Any:
        if command == 50:
            return os.fsencode(read_link(f"/proc/self/fd/{descriptor}")).ljust(1024, b"\0")
        return call(descriptor, command, argument)

    fcntl.F_GETPATH = 50  # type: ignore[attr-defined]
    fcntl.fcntl = fcntl_of_mac  # type: ignore[assignment]
    sys.platform = "darwin"
    sys.meta_path.insert(0, NoLibvirt())  # type: ignore[arg-type]
    sys.addaudithook(refuse)


if __name__ == "__main__":
    become_mac()
    from ktrdr_vm.cli.main import main

    main()
