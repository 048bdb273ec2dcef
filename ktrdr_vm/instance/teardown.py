"""Removal of an instance: its resources in reverse order, with every error collected, and the check that nothing is
left."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ktrdr_vm.errors import ForeignError, HostError, KtrdrError, ProvisionError, ResidueError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.instance.resources.base import Notify, Resource, Target, Verb


def tear_down(target: Target, resources: Sequence[Resource], journal: Journal | None, notify: Notify) -> None:
    """Remove everything, then check it. ResidueError names what is left and what went wrong."""
    errors: list[tuple[Resource, KtrdrError]] = []
    foreign: set[str] = set()
    for resource in reversed(resources):
        began = time.monotonic()
        if resource.location != "host":
            # In the memory of the domain or of the guard, which are removed next.
            continue
        try:
            there = resource.exists()
            resource.remove()
            with contextlib.suppress(HostError):  # a full disk: the journal then lists too much, which does no harm
                if journal is not None:
                    journal.strike(resource.key)
            verb: Verb = "removed" if there else "absent"
        except ForeignError:
            # It has the name but belongs to somebody else: it is no residue, and no hint says how to remove it.
            foreign.add(resource.key)
            verb = "absent"
        except Exception as error:  # an error of one resource must not keep the others
            known = (
                error
                if isinstance(error, KtrdrError)
                else ProvisionError(str(error), where=resource.name, hint=resource.by_hand())
            )
            errors.append((resource, known))
            verb = "failed"
        with contextlib.suppress(OSError):  # the reader of the output may have ended
            notify(resource.kind, resource.name, verb, time.monotonic() - began)
    directory = target.paths.directory
    left = find_residue(resource for resource in resources if resource.key not in foreign)
    if not left:
        with contextlib.suppress(OSError):  # the remaining names are listed below
            target.paths.ssh_alias.unlink(missing_ok=True)
            _remove_directory(directory)
        left = [str(path) for path in (directory, target.paths.ssh_alias) if os.path.lexists(path)]
    if left or errors:
        reasons = "; ".join(f"{resource.kind}: {error.message}" for resource, error in errors)
        by_hand = (
            " && ".join(resource.by_hand() for resource, _ in errors)
            or f"ktrdr-vm destroy {target.identity.instance_id}"
        )
        raise ResidueError(
            f"residue is left: {', '.join(left) or 'none'}" + (f" ({reasons})" if reasons else ""),
            where=target.identity.instance_id,
            hint=f"try again, or by hand: {by_hand}",
            left=left,
        )


def find_residue(resources: Iterable[Resource]) -> list[str]:
    """The resources that exist on the host, as the host reports them."""
    found = []
    for resource in resources:
        if resource.location != "host":
            continue
        try:
            if resource.exists():
                found.append(f"{resource.kind} {resource.name}")
        except (KtrdrError, OSError, ValueError) as error:
            # A resource that cannot be checked may still exist.
            found.append(f"{resource.kind} {resource.name} (unknown: {getattr(error, 'message', error)})")
    return found


def _remove_directory(directory: Path) -> None:
    if directory.exists():
        # The journal is removed last: while anything is left, it records the owner.
        for path in sorted(directory.iterdir(), key=lambda path: path.name == "journal.json"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        directory.rmdir()
