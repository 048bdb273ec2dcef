"""Commands to a running HAProxy over its runtime socket: which names are granted, and which connections end now."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ktrdr_vm.egress.client import short_name
from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.plan.guard_interface import GRANT_MAPS

TIMEOUT = 1.0
# Commands in one line, of which HAProxy accepts 16 KiB.
_AT_ONCE = 24
# Bytes of the entries of a map in one command. Of a command beyond 16 KiB HAProxy adds nothing, without an error.
_MOST_ENTRIES = 12 * 1024
# Bytes and seconds of one answer. The largest lists all connections, with two kilobytes for each.
_MOST_SAID = 16 * 1024 * 1024
_LONGEST = 5.0
_LONGEST_ENTRY = 4096
# Each within one line, so that any answer of a compromised proxy is parsed in a time that grows with its length.
_SESSION = re.compile(r"(0x[0-9a-f]+): ")
_FRONTEND = re.compile(r"  frontend=(\S+) .*? addr=(\S+)")


@dataclass(frozen=True)
class Session:
    """A connection that the proxy carries by address: its id in HAProxy, and the destination that the guest dialled."""

    id: str
    address: str
    port: int


class ProxyControl:
    """`directory` is the guard's folder with the socket and the maps."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def answers(self) -> bool:
        """True when HAProxy answers on its runtime socket."""
        try:
            return bool(self.ask("show info"))
        except ProvisionError:
            return False

    def write_maps(self, maps: Mapping[str, Mapping[str, str]], files: Iterable[str] = GRANT_MAPS) -> None:
        """Write the files that HAProxy reads when it starts: map name to key and value, which for a granted name is its
        grant slot."""
        for file in files:
            path = self._directory / file
            fresh = path.with_name(f".{file}.new")
            fresh.touch(mode=0o600)
            fresh.write_text("".join(f"{name} {slot}\n" for name, slot in maps.get(file, {}).items()))
            # Readable only for the group that reads the configuration.
            configuration = self._directory / "proxy.cfg"
            os.chown(fresh, -1, configuration.stat().st_gid if configuration.exists() else -1)
            fresh.chmod(0o440)
            fresh.rename(path)

    def load_maps(self, maps: Mapping[str, Mapping[str, str]], files: Iterable[str] = GRANT_MAPS) -> None:
        """Load the maps into the running process. Each map is replaced atomically."""
        for file in files:
            path = self._directory / file
            version = re.search(r"New version created: (\d+)", self.ask(f"prepare map {path}"))
            if version is None:
                raise ProvisionError(
                    "the proxy does not take a new map", where=str(path), hint="guard.log contains the details"
                )
            for entries in _split(maps.get(file, {})):
                self.expect_nothing(f"add map @{version[1]} {path} <<\n{entries}")
            self.expect_nothing(f"commit map @{version[1]} {path}")

    def end_slots(self, slots: Iterable[str]) -> None:
        """End every connection that was allowed by the grant of one of these slots."""
        for slot in slots:
            for backend in ("granted_tls", "granted_http"):
                self.expect_nothing(f"shutdown sessions server {backend}/{slot}")

    def list_by_address(self) -> list[Session]:
        """The connections that were allowed by their address and port."""
        found = []
        session = ""
        for line in self.ask("show sess all").split("\n"):
            if begin := _SESSION.match(line):
                session = begin[1]
            elif session and (one := _FRONTEND.fullmatch(line)):
                address, _, port = one[2].rpartition(":")
                if one[1] == "other" and re.fullmatch("[0-9]{1,5}", port):
                    found.append(Session(session, address, int(port)))
                session = ""
        return found

    def end_sessions(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self.ask(f"shutdown session {session.id}")

    def change_list(self, verb: Literal["add", "del"], list_file: str, entries: Sequence[str]) -> None:
        """Add or delete entries, which contain no spaces. An entry that exists already, or does not exist, is no
        error."""
        for first in range(0, len(entries), _AT_ONCE):
            self.ask(
                ";".join(
                    f"{verb} acl {self._directory / list_file} {entry}" for entry in entries[first : first + _AT_ONCE]
                )
            )

    def clear_list(self, list_file: str) -> None:
        self.expect_nothing(f"clear acl {self._directory / list_file}")

    def matches(self, list_file: str, name: str) -> bool:
        """True if the list that HAProxy has loaded contains the name."""
        return "match=yes" in self.ask(f"get acl {self._directory / list_file} {name}")

    def find_slot(self, map_file: str, name: str) -> str:
        """The grant slot that a map has for the name; empty if there is none."""
        said = self.ask(f"get map {self._directory / map_file} {name}")[:_LONGEST_ENTRY]
        found = re.search(r'found=yes.* value="([^"]+)"', said)
        return found[1] if found else ""

    def count_lost_lines(self) -> int:
        """The number of lines of its log that were not read in time and dropped, since it started."""
        found = re.search(r"^DroppedLogs: (\d+)$", self.ask("show info"), re.MULTILINE)
        return int(found[1]) if found else 0

    def expect_nothing(self, command: str) -> None:
        said = self.ask(command).strip()
        if said:
            raise ProvisionError(
                f"the proxy says: {said[:200]}", where=command.splitlines()[0], hint="guard.log contains the details"
            )

    def ask(self, command: str) -> str:
        """Send one command, and return the answer. ProvisionError if there is none within a second, or no end of it
        within five, or within 16 MiB: a compromised proxy can answer without end."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(TIMEOUT)
                with short_name(self._directory / "stats.sock") as name:
                    connection.connect(name)
                connection.sendall(command.encode() + b"\n")
                said, deadline = bytearray(), time.monotonic() + _LONGEST
                while piece := connection.recv(1 << 16):
                    said += piece
                    if len(said) > _MOST_SAID or time.monotonic() > deadline:
                        raise TimeoutError("its answer does not end")
        except OSError as error:
            raise ProvisionError(
                f"the proxy does not answer: {error}", where=str(self._directory), hint="guard.log contains the details"
            ) from None
        return said.decode("utf-8", "replace")


def _split(entries: Mapping[str, str]) -> list[str]:
    """The lines of a map in parts that one command can have. None is longer, because a value has at most 4 KiB."""
    parts = [""]
    for name, value in entries.items():
        line = f"{name} {value}\n"
        if len(parts[-1]) + len(line) > _MOST_ENTRIES:
            parts.append("")
        parts[-1] += line
    return [part for part in parts if part]
