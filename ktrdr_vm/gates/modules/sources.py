"""Files that a playbook sends into the guest: beneath its folder or the workspace only, without following links, never
a `.git`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from ktrdr_vm.errors import HostError, KtrdrError
from ktrdr_vm.gates.modules.base import ModuleFailure
from ktrdr_vm.host.beneath import Place, UnsafePathError, open_file, open_folder, split_name
from ktrdr_vm.host.owner import find_owner, may_read, reading_as
from ktrdr_vm.profile.personal import find_personal


def read_source(
    roots: Sequence[Path | Place],
    name: str,
    *,
    max_bytes: int,
    within: Sequence[str] = (),
    known: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """The bytes of a file, searched in each root, and first in its folders `within` (`files`, `templates`), as Ansible
    does.

    `known` are the digests of files beneath the first root when the playbook was loaded (`Playbook.files`). A file that
    differs from its own is refused: the digest of the plan names what runs.
    """
    for root, relative in _places(roots, name, within):
        try:
            with reading_as(find_owner()):
                descriptor = open_file(root, relative)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (UnsafePathError, HostError) as error:
            raise ModuleFailure(error.message) from None
        with os.fdopen(descriptor, "rb") as stream:
            if not may_read(os.fstat(stream.fileno()), find_owner()):
                raise ModuleFailure(f"{name!r} cannot be read: Permission denied")
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ModuleFailure(f"{name} is larger than {max_bytes // 1024} KiB")
        if root == _place(roots[0]):
            _require_known(known, relative, hashlib.sha256(data).hexdigest(), name)
        return data
    raise ModuleFailure(f"Could not find or access {name!r} beneath the playbook's folder or the workspace")


def list_source(
    roots: Sequence[Path | Place],
    name: str,
    *,
    within: Sequence[str] = (),
    limit: int = 1000,
    known: Mapping[str, str] = MappingProxyType({}),
) -> list[tuple[str, str]] | None:
    """The files of the folder `name`, as (name to read, name beneath the folder); None if it is not a folder. `known`
    as for `read_source`."""
    for root, relative in _places(roots, name, within):
        try:
            with reading_as(find_owner()), open_folder(root, _safe_parts(relative)) as descriptor:
                found = _walk(descriptor, "", limit)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ModuleFailure(f"{name!r} cannot be read: {error.strerror} (links are not followed)") from None
        except HostError as error:
            raise ModuleFailure(f"{name!r} cannot be read: {error.message}") from None
        if len(found) > limit:
            raise ModuleFailure(f"{name!r} contains more than {limit} files")
        listed = [(f"{relative.rstrip('/')}/{inner}", inner) for inner in sorted(found)]
        if root == _place(roots[0]):
            _require_known(known, f"{relative.rstrip('/')}/", digest_listing(listed), name)
        return listed
    return None


def is_missing(roots: Sequence[Place], name: str, within: Sequence[str]) -> bool:
    """True if `name` is in none of the places where `read_source` and `list_source` search it. False if a place cannot
    be read: what is there is known when it is read."""
    try:
        for root, relative in _places(roots, name, within):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), reading_as(find_owner()):
                os.close(open_file(root, relative))
                return False
    except (OSError, KtrdrError, ModuleFailure):
        return False
    return True


def digest_listing(listed: Sequence[tuple[str, str]]) -> str:
    """sha256 over the names of the files of a folder, as `list_source` returns them."""
    return hashlib.sha256("\0".join(inner for _, inner in listed).encode("utf-8", "surrogateescape")).hexdigest()


def _require_known(known: Mapping[str, str], relative: str, digest: str, name: str) -> None:
    if known.get(relative, digest) != digest:
        raise ModuleFailure(f"{name!r} changed after the playbook was loaded; run the gate again")


def _walk(descriptor: int, prefix: str, limit: int) -> list[str]:
    found: list[str] = []
    with os.scandir(descriptor) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        _refuse_repository(entry.name, f"{prefix}{entry.name}")
        if entry.is_symlink():
            raise ModuleFailure(f"{prefix}{entry.name} is a link; links are not followed")
        if entry.is_dir(follow_symlinks=False):
            inner = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            try:
                found += _walk(inner, f"{prefix}{entry.name}/", limit - len(found))
            finally:
                os.close(inner)
        else:
            found.append(f"{prefix}{entry.name}")
        if len(found) > limit:
            break
    return found


def _safe_parts(name: str) -> list[str]:
    parts = split_name(name)
    if ".." in parts or name.startswith("/"):
        raise ModuleFailure(f"{name!r} is not beneath the playbook's folder or the workspace")
    return parts


def refuse_source(name: str) -> str:
    """Why the name of a file is never sent, or an empty text. Whether there is such a file is known when it is read."""
    wrong = next((wrong for part in name.split("/") if (wrong := _refuse_part(part, name))), "")
    if not wrong and (".." in name.split("/") or "\0" in name):
        wrong = f"{name!r} is not beneath the playbook's folder or the workspace"
    return wrong


def _refuse_part(part: str, name: str) -> str:
    """Why personal files and `.git` are refused: they can contain passwords of remotes and unpublished commits, as for
    mounts."""
    if find_personal((part,)):
        return f"{name!r} is in a personal folder or file ({part}), which is never copied into a sandbox"
    return f"{name!r} is in a repository's .git, which is never copied into a sandbox" if part.lower() == ".git" else ""


def _refuse_repository(part: str, name: str) -> None:
    if wrong := _refuse_part(part, name):
        raise ModuleFailure(wrong)


def _place(root: Path | Place) -> Place:
    return root if isinstance(root, Place) else Place(root)


def _places(roots: Sequence[Path | Place], name: str, within: Sequence[str]) -> list[tuple[Place, str]]:
    """(root, relative name) to try. An absolute name must be beneath a root."""
    for part in name.split("/"):
        _refuse_repository(part, name)
    if not name.startswith("/"):
        return [
            (root, place) for root in map(_place, roots) for place in (*(f"{folder}/{name}" for folder in within), name)
        ]
    spelled = PurePosixPath(name)
    places = [
        (root, str(spelled.relative_to(root.path)))
        for root in map(_place, roots)
        if ".." not in spelled.parts and spelled.is_relative_to(root.path)
    ]
    if not places:
        raise ModuleFailure(f"{name!r} is not beneath the playbook's folder or the workspace")
    return places
