"""Named network namespaces, as `ip netns` keeps them: created, listed and removed; code can run in one.

A socket stays in the namespace in which it was created, so that a process can serve or connect there from outside.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable

from ktrdr_vm.errors import HostError, ProvisionError

# `pathlib` and the module that starts programs are imported on use: `ktrdr-vm proxy` connects in a namespace, and needs
# neither.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")

FOLDER = "/run/netns"
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def exists(name: str) -> bool:
    """True for a namespace of that name, and for the rest of one after a crash: a file on which no namespace is
    mounted."""
    return os.path.lexists(f"{FOLDER}/{name}")


def is_namespace(name: str) -> bool:
    return os.path.ismount(f"{FOLDER}/{name}")


def list_names(prefix: str) -> list[str]:
    """The names with this prefix, sorted."""
    return sorted(path.name for path in _find_path("").glob(f"{prefix}*"))


def create(name: str) -> None:
    """Create it with `lo` only, which is down. Idempotent."""
    from ktrdr_vm.host import process

    if not is_namespace(name):
        _find_path(name).unlink(missing_ok=True)
        process.run([*process.DIES_WITH_CALLER, "ip", "netns", "add", name], timeout=10)


def remove(name: str) -> None:
    """Remove the name. The namespace and its interfaces end with the last socket in it. Idempotent."""
    from ktrdr_vm.host import process

    if is_namespace(name):
        process.run(["ip", "netns", "del", name], timeout=10)
    _find_path(name).unlink(missing_ok=True)


def run_inside(name: str, act: Callable[[], T]) -> T:
    """Call `act` in the namespace, with the programs that it starts. With an empty name, call it where this process is.

    It runs in a thread of its own: signals raise in the main thread only, so that an interrupt can neither end it half
    done nor leave the caller in the namespace, where a removal would search for the objects of the host. An interrupt
    is raised after it has ended. ProvisionError if there is no such namespace, HostError if this process may not enter
    it.
    """
    if not name:
        return act()
    results: list[T] = []
    errors: list[BaseException] = []
    # Not `threading`, whose locks of several steps do not survive an interrupt in between.
    ended = _thread.allocate_lock()
    ended.acquire()

    def run() -> None:
        try:
            _enter(name)
            results.append(act())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.release()

    _thread.start_new_thread(run, ())
    try:
        ended.acquire()
    except BaseException:
        # The lock may be held already. An object that is half created would be created after its removal.
        while not results and not errors:
            time.sleep(0.001)
        raise
    if errors:
        raise errors[0]
    return results[0]


def make_socket(name: str, kind: socket.SocketKind) -> socket.socket:
    """An IPv4 socket in the namespace."""
    return run_inside(name, lambda: socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC))


def connect(name: str, address: tuple[str, int], timeout: float) -> socket.socket:
    """A TCP connection to an address of the namespace. OSError if it is not established within `timeout` seconds."""
    made = make_socket(name, socket.SOCK_STREAM)
    try:
        made.settimeout(timeout)
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def _find_path(name: str) -> Path:
    from pathlib import Path

    return Path(FOLDER, name)


def _enter(name: str) -> None:
    """Move this thread into the namespace, for good."""
    try:
        there = os.open(f"{FOLDER}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _make_absent_error(name) from None
    try:
        if _LIBC.setns(there, _CLONE_NEWNET) == 0:
            return
        number = ctypes.get_errno()
    finally:
        os.close(there)
    if number == errno.EINVAL:
        raise _make_absent_error(name)
    raise HostError(
        f"the network namespace {name} cannot be entered: {os.strerror(number)}",
        where=f"{FOLDER}/{name}",
        hint="run the command with sudo",
    )


def _make_absent_error(name: str) -> ProvisionError:
    return ProvisionError(
        f"there is no network namespace {name}",
        where=FOLDER,
        hint="`ktrdr-vm list` shows the instances; `ktrdr-vm apply` again",
    )
