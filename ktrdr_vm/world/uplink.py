"""pasta, which carries the packets of the world's network namespace as the person, without a right that the person has
not."""

from __future__ import annotations

import os
import subprocess
import time
from ipaddress import ip_address
from pathlib import Path

from ktrdr_vm.host import process
from ktrdr_vm.host.name_servers import FORWARDED, find_upstreams
from ktrdr_vm.host.privileges import die_with, exec_unconfined

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# IPv4, as the guards; the host's own addresses and ports are not reachable through it, and nothing reaches the world
# from outside.
_OPTIONS = ("--foreground", "--quiet", "--ipv4-only", "--config-net", "--no-map-gw")
_CLOSED = ("--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none")


class Uplink:
    """pasta for the network namespace of a process; started again when it ends, as it does where there is no
    network."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pause = _FIRST_PAUSE
        self._due = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._forwards = False
        self.look()

    def look(self) -> None:
        """Start it when it is not there, and again when the host's name server is on the loopback of the host now, or
        is not any more."""
        forwards = _has_local_name_server()
        if self._process is not None and forwards != self._forwards:
            self.end()
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._due = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._process is None and time.monotonic() >= self._due:
            parent, self._forwards = os.getpid(), forwards
            # Only where it is needed: with it, answers of that server come from this address, also to who asked the
            # server itself.
            dns = ("--dns-forward", FORWARDED) if forwards else ()
            words = [_choose_program(), *_OPTIONS, *dns, *_CLOSED, str(self._pid)]
            self._process = process.start(
                words, streams=process.Streams(stderr=2), in_child=lambda: _prepare(parent), new_session=False
            )

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _choose_program() -> str:
    """The variant for this CPU, which pasta would execute by itself; but that program would get the profile again."""
    has_variant = process.find_program("pasta.avx2") is not None and " avx2 " in Path("/proc/cpuinfo").read_text()
    return "pasta.avx2" if has_variant else "pasta"


def _prepare(parent: int) -> None:
    die_with(parent)
    # Debian's profile lets it open a network namespace by a name in /run/user/*/netns only, which a user cannot give to
    # one of a world.
    exec_unconfined()


def _has_local_name_server() -> bool:
    return any(ip_address(one).is_loopback for one in find_upstreams()[:1])
