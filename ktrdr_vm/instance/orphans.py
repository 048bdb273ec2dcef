"""Orphans: objects on the host that look like those of ktrdr-vm and belong to no instance. They come from earlier
versions, lost state and killed processes.

They are reported and not removed: without the mark of ktrdr-vm they may belong to somebody else.
"""

from __future__ import annotations

import re

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.host import netns
from ktrdr_vm.host.journal import list_directories, read_journal
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.links import list_links
from ktrdr_vm.host.nft import list_tables, read_comment
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import DOMAIN_PREFIX, TABLE_PREFIX, TAP_PREFIX
from ktrdr_vm.instance.inventory import find_instances

_TAP = re.compile(rf"{TAP_PREFIX}[0-9a-f]{{10}}")
_MARK = "ktrdr-vm instance_id="


def find_orphans(home: Home, libvirt: Libvirt) -> list[tuple[str, str]]:
    """Each orphan, and how to remove it. HostError or ProvisionError when the host cannot be examined."""
    found = []
    for entry in find_instances(home, libvirt):
        if entry.note.startswith("incomplete"):
            # `gc` leaves what a person keeps, such as an interactive instance after a reboot.
            fix = f"ktrdr-vm apply, or ktrdr-vm destroy {entry.instance_id}" if entry.kept else "ktrdr-vm gc"
            found.append((f"the instance {entry.instance_id} is {entry.note}", fix))
    for directory in list_directories(home):
        try:
            read_journal(directory / "journal.json")
        except KtrdrError as error:
            found.append((f"{directory.name}: {error.message}", error.hint))
    for name, alias in list_links().items():
        if _TAP.fullmatch(name) and _MARK not in alias:
            found.append((f"the tap {name} carries no mark", f"ip link del {name}"))
    for namespace in netns.list_names(DOMAIN_PREFIX):
        if _MARK not in list_links(namespace).get("lo", ""):
            found.append((f"the network namespace {namespace} carries no mark", f"ip netns del {namespace}"))
    for table in list_tables(TABLE_PREFIX):
        if _MARK not in (read_comment(table) or ""):
            found.append((f"the table inet {table} carries no mark", f"nft delete table inet {table}"))
    for name in libvirt.list_unmarked(DOMAIN_PREFIX):
        found.append((f"the domain {name} carries no metadata of ours", f"virsh destroy {name}; virsh undefine {name}"))
    return found
