"""Allocation: the slot of a new instance, from which its users and its loopback address derive, its host key and its
login key."""

from __future__ import annotations

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.journal import Journal, list_journals
from ktrdr_vm.host.listeners import find_bound
from ktrdr_vm.host.paths import Home, InstancePaths
from ktrdr_vm.identity import HOST_USERS, SSH_SUFFIX, WORLD_USERS, InstanceUsers
from ktrdr_vm.plan.facts import Allocation, allocate
from ktrdr_vm.plan.guard_interface import DNS_PORT
from ktrdr_vm.users import in_user_namespace


def find_free_slot(home: Home) -> int:
    """The first slot that no journal of this home and no guard of another home uses. Call it under the lock of the
    slots."""
    taken, bound = {journal.slot for journal in list_journals(home)}, find_bound(DNS_PORT)
    for slot in range(find_users().slots):
        loopback = allocate(slot, genid="", host_key="", host_public_key="", login_public_key="").loopback
        if slot not in taken and loopback not in bound:
            return slot
    raise HostError(
        "every slot is taken", where=str(home.instances), hint="destroy instances; `ktrdr-vm list` shows them"
    )


def require_instance_limit(home: Home, instance_id: str, most: int) -> None:
    """HostError when `most` other instances exist, which is the instance limit of the owner's policy."""
    others = sum(journal.instance_id != instance_id for journal in list_journals(home))
    if others >= most:
        raise HostError(
            f"{others} instances exist, and the owner of this host allows {most}",
            where=str(home.instances),
            hint="`ktrdr-vm list` shows them; `ktrdr-vm gc` and `ktrdr-vm destroy` remove them",
        )


def create_keys(paths: InstancePaths) -> None:
    """Create the guest's SSH host key and the login key. Only the owner can read the private halves."""
    # Imported here: commands that list instances need no cryptography.
    from ktrdr_vm.host.keys import generate_keypair

    folder = paths.host_key.parent
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in (paths.host_key, paths.login_key):
        private, public = generate_keypair()
        write_durably(path.with_suffix(".pub"), public.encode() + b"\n")
        write_durably(path, private.encode())
    publish_keys(paths)


def publish_keys(paths: InstancePaths) -> None:
    """Write known_hosts, and the link through which OpenSSH's wildcard block finds the keys. Idempotent."""
    name, folder = paths.directory.name, paths.host_key.parent
    host_key = paths.host_key.with_suffix(".pub").read_text()
    write_durably(paths.known_hosts, f"{name},{name}{SSH_SUFFIX} {host_key}".encode())
    paths.ssh_alias.parent.mkdir(mode=0o700, exist_ok=True)
    if not paths.ssh_alias.is_symlink() or paths.ssh_alias.readlink() != folder:
        paths.ssh_alias.unlink(missing_ok=True)
        paths.ssh_alias.symlink_to(folder)


def read_allocation(paths: InstancePaths, journal: Journal) -> Allocation:
    """The allocation of an instance, from its journal and its keys."""
    return allocate(
        journal.slot,
        genid=journal.genid,
        host_key=paths.host_key.read_text(),
        host_public_key=paths.host_key.with_suffix(".pub").read_text().strip(),
        login_public_key=paths.login_key.with_suffix(".pub").read_text().strip(),
        users=find_users(),
    )


def find_users() -> InstanceUsers:
    """The users of the instances of this process: those of a world in a user namespace, else those of the host."""
    return WORLD_USERS if in_user_namespace() else HOST_USERS
