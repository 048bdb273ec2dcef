"""The owner's policy as it lies on this host."""

from __future__ import annotations

from pathlib import Path

from ktrdr_vm.errors import HostError
from ktrdr_vm.profile.policy import POLICY_PATH, OwnerPolicy, parse_policy
from ktrdr_vm.profile.strict_yaml import MAX_BYTES


def read_policy() -> OwnerPolicy:
    """The owner's policy. It must be root's and writable by root alone, or nothing starts."""
    path = Path(POLICY_PATH)
    try:
        facts = path.stat()
    except FileNotFoundError:
        return OwnerPolicy()
    except OSError as error:
        raise HostError(f"the owner's policy cannot be read: {error.strerror}", where=POLICY_PATH, hint="chmod go+rx its folder") from None
    if facts.st_uid != 0 or facts.st_mode & 0o022:
        raise HostError(
            "the owner's policy can be changed by others than root", where=POLICY_PATH, hint=f"chown root {path}; chmod go-w {path}"
        )
    try:
        with path.open("rb") as file:
            return parse_policy(file.read(MAX_BYTES + 1), POLICY_PATH)
    except OSError as error:
        raise HostError(
            f"the owner's policy cannot be read: {error.strerror}", where=POLICY_PATH, hint="chmod go+r it, or run as root"
        ) from None
