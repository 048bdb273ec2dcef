"""Removal of what no run holds: instances, partial images and templates, and instances whose time to live has ended."""

from __future__ import annotations

import os
import shutil

from ktrdr_vm.errors import BusyError, KtrdrError
from ktrdr_vm.host.journal import is_locked, list_journals, locked, remove_dead_locks
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.running import end_process
from ktrdr_vm.host.tree_removal import remove_tree
from ktrdr_vm.identity import Identity, parse_instance_id
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.inventory import Found, find_instances
from ktrdr_vm.instance.resources.domain import find_qemu


def collect_garbage(home: Home, libvirt: Libvirt, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove the instances that no run holds and that are not kept, those whose time to live has ended, and partial
    images and templates. Returns rows of action, instance_id, reason."""
    rows = []
    for entry in find_instances(home, libvirt):
        if not entry.busy and (entry.expired or not entry.kept):
            rows += _collect(home, libvirt, entry, dry_run=dry_run)
        elif (
            "namespace" in entry.seen
            and not dry_run
            and Instance(home, parse_instance_id(entry.instance_id), libvirt).close_unguarded()
        ):
            rows.append(
                {
                    "action": "closed",
                    "instance_id": entry.instance_id,
                    "reason": "its guard does not run; apply starts it again",
                }
            )
    return rows + _collect_files(home, dry_run=dry_run)


def collect_expired(home: Home, libvirt: Libvirt) -> list[dict[str, str]]:
    """Remove only the instances whose time to live has ended: cheap enough for every `apply`. Rows as above."""
    expired = {journal.instance_id for journal in list_journals(home) if journal.expired}
    found = [entry for entry in find_instances(home, libvirt) if entry.instance_id in expired] if expired else []
    return [row for entry in found if not entry.busy for row in _collect(home, libvirt, entry, dry_run=False)]


def collect_job(home: Home, libvirt: Libvirt, job: str, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove the instances that a job created and that exist after it, kept ones included, and the workspaces and
    partial files that no process holds. Rows as above.

    A suspended instance has no process, and stays until its time to live ends. The action is `failed` for an instance
    that a run holds.
    """
    rows = []
    created = {journal.instance_id for journal in list_journals(home) if journal.job == job}
    for entry in find_instances(home, libvirt):
        if _is_left_template(entry):
            # It names no job, and no process holds it: a later build begins with another VM.
            rows += _collect(home, libvirt, entry, dry_run=dry_run)
        if entry.instance_id not in created or entry.rest == "suspended":
            continue
        action, reason = "would remove" if dry_run else "removed", f"it was created by {job}"
        instance = Instance(home, parse_instance_id(entry.instance_id), libvirt)
        try:
            if not dry_run:
                with instance.locked():
                    instance.destroy()
        except KtrdrError as error:
            action, reason = "failed", f"{error}; next: {error.hint}"
        rows.append({"action": action, "instance_id": entry.instance_id, "reason": reason})
    return rows + _collect_files(home, dry_run=dry_run)


def collect_workspaces(home: Home, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove the workspaces of requests whose attempts were killed. Rows as above, with the id of the request."""
    rows = []
    for left in sorted(home.workspaces.iterdir()) if home.workspaces.is_dir() else ():
        lock = home.lock(f"request-{left.name}")
        action, reason = "would remove" if dry_run else "removed", "the workspace of an attempt that was killed"
        if is_locked(lock):
            continue
        try:
            if not dry_run:
                with locked(lock, f"the request {left.name}"):
                    remove_tree(left)
        except (BusyError, FileNotFoundError):
            continue  # an attempt of it has begun, or another process removed it
        except OSError as error:
            action, reason = "failed", f"{left}: {error.strerror}; next: remove it by hand"
        rows.append({"action": action, "instance_id": left.name, "reason": reason})
    return rows


def _is_left_template(entry: Found) -> bool:
    """True for the VM of a template that no process builds. It has no journal, which an instance has."""
    return entry.instance_id.startswith("template--") and not entry.busy and not entry.seen & {"journal", "directory"}


def _collect_files(home: Home, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove files of no instance: workspaces, partial images and templates, and locks that no process holds."""
    rows = collect_workspaces(home, dry_run=dry_run) + _collect_partial(home, dry_run=dry_run)
    if not dry_run:
        remove_dead_locks(home.locks)
    return rows


def _collect(home: Home, libvirt: Libvirt, entry: Found, *, dry_run: bool) -> list[dict[str, str]]:
    reason = f"its time to live ended at {entry.expires_at}" if entry.expired else entry.note or "its run has ended"
    action = "would remove" if dry_run else "removed"
    instance = Instance(home, parse_instance_id(entry.instance_id), libvirt)
    try:
        if not dry_run:
            with instance.locked():
                if not entry.expired and instance.is_kept():
                    return []  # a run has ended since the listing, and keeps it for a person
                instance.destroy()
    except BusyError:
        return []  # a run has locked it since the listing
    except KtrdrError as error:
        action, reason = "failed", f"{error}; next: {error.hint}"
    return [{"action": action, "instance_id": entry.instance_id, "reason": reason}]


def _collect_partial(home: Home, *, dry_run: bool) -> list[dict[str, str]]:
    """Remove what killed builds of images and templates left, sometimes gigabytes. A build that still runs holds its
    lock."""
    rows = []
    for folder, locks, lock in (
        (home.templates, home.locks, "template-{}.lock"),
        (home.images, home.images, ".lock-{}"),
    ):
        for path in sorted([*folder.glob(".new-*"), *folder.glob(".gone-*")]):
            key = path.name.split("-")[1]
            if is_locked(locks / lock.format(key)):
                continue
            reason = "incomplete, and no process builds it"
            action = "would remove" if dry_run else "removed"
            if not dry_run:
                try:
                    # Its QEMU may still run, also when libvirt has lost the domain; a domain that libvirt knows was
                    # removed as an instance above.
                    for pid in (
                        find_qemu(Identity(f"template--{key[:12]}").domain, path) if folder == home.templates else []
                    ):
                        end_process(pid)
                    # Renamed first, so that a build that begins now creates a new one.
                    doomed = (
                        path if path.name.startswith(".gone-") else path.rename(folder / f".gone-{key}-{os.getpid()}")
                    )
                    shutil.rmtree(doomed)
                except FileNotFoundError:
                    continue  # another process removed it
                except OSError as error:
                    action, reason = "failed", f"{path}: {error.strerror}; next: remove it by hand"
            rows.append({"action": action, "instance_id": path.name, "reason": reason})
    return rows
