"""The tap of an instance: detects that a VM is attached, and that it has ended."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Callable

from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import process
from ktrdr_vm.host.netns import make_socket

_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
# Polls without a carrier after which the VM counts as ended: a device that is being reset has none for a moment.
_PATIENCE = 2
_IFREQ = struct.Struct("16sH22x")


class Link:
    """One tap. When a VM that was attached no longer is, it has ended: `on_end` is called once, and the link is set
    down.

    The credentials that the guard holds are for that VM. Any VM that is attached to the tap later is a different one,
    and must not use them.
    """

    def __init__(self, tap: str, namespace: str, ledger: Ledger, on_end: Callable[[], None]) -> None:
        self._tap = tap
        self._namespace = namespace
        self._ledger = ledger
        self._on_end = on_end
        self._attached = False
        self._absent = 0
        self._socket = make_socket(namespace, socket.SOCK_DGRAM)

    def poll(self) -> None:
        """Check whether a VM is attached. Called at every poll of the guard."""
        flags = self._read_flags()
        if flags & _IFF_RUNNING:
            self._attached, self._absent = True, 0
            return
        self._absent += 1
        if not self._attached or self._absent < _PATIENCE:
            return
        self._attached = False
        self._on_end()
        if flags & _IFF_UP:
            with contextlib.suppress(KtrdrError):
                process.run(["ip", "-n", self._namespace, "link", "set", "dev", self._tap, "down"], timeout=10)
        self._ledger.write(
            "guard", "note", rule="link", message="the machine is not attached to its tap any more; the link is down"
        )

    def _read_flags(self) -> int:
        """The flags of the interface; 0 if it does not exist."""
        try:
            reply = fcntl.ioctl(self._socket, _SIOCGIFFLAGS, _IFREQ.pack(self._tap.encode(), 0))
        except OSError:
            return 0
        return int(_IFREQ.unpack(reply)[1])
