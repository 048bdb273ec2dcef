"""Reading the owner's policy on this host."""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_vm.errors import HostError
from ktrdr_vm.policy.owner_policy import POLICY_PATH, OwnerPolicy, parse_policy
from ktrdr_vm.profile.collector import Collector, parse_headers
from ktrdr_vm.profile.strict_yaml import MAX_BYTES
from ktrdr_vm.users import find_changeable, find_configuration, in_user_namespace, is_trusted_owner


def find_policy() -> Path:
    """The policy of the host's owner. Without root and without such a file, that of the person, who owns what runs
    then."""
    path = Path(POLICY_PATH)
    if os.geteuid() == 0 and not in_user_namespace():
        return path
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path if _find_broken_link(path) else find_configuration() / "policy.yaml"
    except OSError:
        # In a folder that this user may not enter it may exist, so reading it is the error.
        return path
    return path


def read_policy() -> OwnerPolicy:
    """The owner's policy. HostError unless it belongs to root, or without root to this person, and nobody else can
    change it."""
    path = find_policy()
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            changeable = (
                str(path) if not is_trusted_owner(facts.st_uid) or facts.st_mode & 0o022 else find_changeable(path)
            )
            if changeable:
                raise HostError(
                    f"other users can change the owner's policy: {changeable}",
                    where=str(path),
                    hint=f"chown root {changeable}; chmod go-w {changeable}",
                )
            return parse_policy(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        if link := _find_broken_link(path):
            # Its owner has a policy; the defaults could allow more.
            raise HostError(
                f"the owner's policy cannot be read: {link} is a link to nothing",
                where=str(path),
                hint="correct the link, mount what it leads to, or remove it",
            ) from None
        # If other users could create or remove the file, its absence is not trusted.
        if path.parent.exists() and (changeable := find_changeable(path.parent)):
            raise HostError(
                f"other users could create the owner's policy: {changeable}",
                where=str(path),
                hint=f"chown root {changeable}; chmod go-w {changeable}",
            ) from None
        return OwnerPolicy()
    except OSError as error:
        raise HostError(
            f"the owner's policy cannot be read: {error.strerror}",
            where=str(path),
            hint="make it readable with `chmod go+r`, or run as root",
        ) from None


def _find_broken_link(path: Path) -> Path | None:
    """The part of a path that is a link to nothing, if there is one."""
    return next((one for one in (path, *path.parents) if one.is_symlink() and not one.exists()), None)


def read_collector_headers(collector: Collector) -> dict[str, str]:
    """The headers of every request to the owner's collector. Only root may be able to read the file."""
    if not collector.headers_file:
        return {}
    path = Path(collector.headers_file)
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if not is_trusted_owner(facts.st_uid) or facts.st_mode & 0o077:
                raise HostError(
                    "users other than root can read or change the headers of the collector",
                    where=str(path),
                    hint=f"chown root {path}; chmod 600 {path}",
                )
            return parse_headers(file.read(MAX_BYTES).decode())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise HostError(
            f"the collector's headers cannot be read: {reason}",
            where=str(path),
            hint="write one header a line, such as `Authorization: Bearer …`",
        ) from None
