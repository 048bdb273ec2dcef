"""Instances as the host knows them: journals, libvirt metadata, aliases of interfaces and nft comments, joined by
instance_id.

Instances are found also when the state directory is lost. Objects without the mark of ktrdr-vm are never listed or
changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ktrdr_vm.egress.revision import read_revision
from ktrdr_vm.host import netns
from ktrdr_vm.host.journal import Journal, is_locked, list_directories, list_journals
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.libvirt_binding import DomainFacts
from ktrdr_vm.host.links import list_links
from ktrdr_vm.host.nft import list_tables, read_comment
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import DOMAIN_PREFIX, TABLE_PREFIX, make_home_token
from ktrdr_vm.instance.guard_status import check_guard

_MARK = re.compile(r"ktrdr-vm instance_id=([a-z0-9-]{1,63}) home=([0-9a-f]{8})")


@dataclass
class Found:
    """One instance_id, and where it was found."""

    instance_id: str
    mode: str = "unknown"
    state: str = "no domain"
    created_at: str = ""
    run_id: str = ""
    """The run that it belongs to, from the journal."""
    busy: bool = False
    kept: bool = False
    """True for an interactive instance, and for one that was created to be kept."""
    rest: str = ""
    """suspending, suspended or resuming, from the journal."""
    expires_at: str = ""
    expired: bool = False
    """True if its time to live has ended. It is then removed, also while it is in use."""
    faults: tuple[str, ...] = ()
    """The parts of its guard that do not serve, while it runs."""
    revision: str = ""
    """The revision of its permissions; empty while it has no network."""
    seen: set[str] = field(default_factory=set)

    @property
    def note(self) -> str:
        """That a run is at work on it, that a suspend or resume was interrupted, the parts that it lacks, or its
        faults."""
        if self.busy:
            return "a run is at work"
        if self.rest == "suspended":
            return ""
        if self.rest:
            return f"interrupted while {self.rest}: `ktrdr-vm resume` or `ktrdr-vm suspend` it again"
        missing = [what for what in ("journal", "namespace", "firewall", "tap", "domain") if what not in self.seen]
        return f"incomplete: no {', no '.join(missing)}" if missing else "; ".join(self.faults)

    def to_json(self) -> dict[str, Any]:
        return {
            "instance_id": self.instance_id,
            "mode": self.mode,
            "state": self.state,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "busy": self.busy,
            "seen": sorted(self.seen),
            "note": self.note,
            "revision": self.revision,
        }


def is_kept(journal: Journal | None, domain: DomainFacts | None) -> bool:
    """True if the instance is interactive or was created to be kept. The domain also records the mode, for a lost
    journal."""
    if journal is not None and (journal.kept or journal.mode == "interactive"):
        return True
    return domain is not None and domain.mode == "interactive"


def find_instances(home: Home, libvirt: Libvirt) -> list[Found]:
    """The instances of this home that have a journal, a directory or an object on the host, sorted by instance_id."""
    found: dict[str, Found] = {}

    def seen(instance_id: str, where: str) -> Found:
        entry = found.setdefault(instance_id, Found(instance_id))
        entry.seen.add(where)
        return entry

    for journal in list_journals(home):
        entry = seen(journal.instance_id, "journal")
        entry.mode, entry.created_at, entry.run_id = journal.mode, journal.created_at, journal.run_id
        entry.expires_at, entry.expired = journal.expires_at, journal.expired
        entry.kept = is_kept(journal, None)
        entry.rest = "" if journal.state == "awake" else journal.state
    for directory in list_directories(home):
        seen(directory.name, "directory")
    for domain in libvirt.list_ours():
        if domain.home != str(home.root):
            continue
        entry = seen(domain.instance_id, "domain")
        entry.state, entry.mode = domain.state, domain.mode
        entry.kept = entry.kept or is_kept(None, domain)
    for table in list_tables(TABLE_PREFIX):
        for instance_id in _marked(read_comment(table) or "", home):
            seen(instance_id, "firewall")
    for instance_id, where in _find_links(home):
        seen(instance_id, where)
    for entry in found.values():
        if entry.rest == "suspended":
            # libvirt may still have a definition of it, which is shut off; the saved state decides.
            entry.state = entry.rest
        if entry.state == "running" and "journal" in entry.seen:
            entry.faults = tuple(check_guard(home.instance(entry.instance_id).guard))
        entry.revision = read_revision(home.instance(entry.instance_id).guard)
        entry.busy = is_locked(home.lock(entry.instance_id)) or _is_building(home, entry.instance_id)
    return sorted(found.values(), key=lambda entry: entry.instance_id)


def _find_links(home: Home) -> Iterator[tuple[str, str]]:
    """Instance ids by the marks of namespaces and taps; a tap is on the host until QEMU has opened it."""
    for namespace in ("", *netns.list_names(DOMAIN_PREFIX)):
        for name, alias in list_links(namespace).items():
            for instance_id in _marked(alias, home):
                yield instance_id, "namespace" if name == "lo" else "tap"


def _is_building(home: Home, instance_id: str) -> bool:
    """True if it is the domain of a template that a process builds: that process holds the lock of the template."""
    prefix, _, key = instance_id.partition("--")
    return prefix == "template" and any(is_locked(path) for path in home.locks.glob(f"template-{key}*.lock"))


def _marked(text: str, home: Home) -> set[str]:
    """Instance ids of this home among the marks in the output of a tool."""
    token = make_home_token(str(home.root))
    return {instance_id for instance_id, owner in _MARK.findall(text) if owner == token}
