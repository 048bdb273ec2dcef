"""The Ed25519 key of the owner, with which attestations are signed, and the public keys with which they are checked."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.rights import set_rights
from ktrdr_vm.policy.owner_policy import OwnerPolicy

_MAX_KEY = 64 * 1024


def find_signing_key(home: Home, policy: OwnerPolicy) -> Ed25519PrivateKey:
    """The key that signs bundles if it is an Ed25519 key, else that of the state directory, which is created on first
    use.

    The public key is written beside that of the state directory each time. HostError if the key cannot be read, or if
    others can.
    """
    key = _read_policy_key(policy.signing_key) or _find_own_key(home.attestation_key)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if _read_quietly(home.attestation_public_key) != public:
        write_durably(home.attestation_public_key, public, mode=0o644)
        set_rights(home.attestation_public_key, home.root)
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key in PEM, or as a line of OpenSSH. UsageError for anything else."""
    try:
        content = read_named(path, _MAX_KEY)
        key = load_ssh_public_key(content) if content.startswith(b"ssh-") else load_pem_public_key(content)
    except OSError as error:
        raise UsageError(
            f"the public key cannot be read: {error.strerror}", where=str(path), hint="name a readable file"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            "this is not an Ed25519 public key in PEM or OpenSSH's format",
            where=str(path),
            hint="the owner of the host has it as attestation-key.pub in the state directory",
        )
    return key


def read_named(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of a file that a person named, which may be a pipe of their shell. OSError for a pipe
    that has a name: whether somebody writes into it is not known, and opening it would wait for that."""
    if path.is_fifo() and os.path.lexists(os.path.realpath(path)):
        raise OSError(22, "it is a named pipe and not a file", str(path))
    with path.open("rb") as file:
        return file.read(limit)


def _read_policy_key(name: str) -> Ed25519PrivateKey | None:
    """None if the policy names no key, or one of another kind, with which ssh-keygen signs bundles and this program
    cannot."""
    if not name:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = load_ssh_private_key(_read_private(Path(name)), password=None)
        return key if isinstance(key, Ed25519PrivateKey) else None
    return None


def _find_own_key(path: Path) -> Ed25519PrivateKey:
    if not os.path.lexists(path):
        _create_key(path)
    try:
        key = load_pem_private_key(_read_private(path), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise HostError(
            f"the key that signs attestations cannot be read: {reason}",
            where=str(path),
            hint="restore it, or remove it: the next run creates another one, with another public key",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise HostError(
            "the key that signs attestations is not an Ed25519 key",
            where=str(path),
            hint="remove it: the next run creates one",
        )
    return key


def _create_key(path: Path) -> None:
    """Write a new key, unless another process did so first: a key that was used once is never replaced."""
    made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_durably(new, made, mode=0o600)
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(new)
    finally:
        new.unlink()


def _read_private(path: Path) -> bytes:
    """A regular file of this user or of root that no other user can read. HostError if they can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(22, "it is not a regular file", str(path))
        if facts.st_mode & 0o077 or facts.st_uid not in (0, os.geteuid()):
            raise HostError(
                "other users can read or change the key that signs attestations",
                where=str(path),
                hint=f"chmod 600 {path}",
            )
        return file.read(_MAX_KEY)


def _read_quietly(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""
