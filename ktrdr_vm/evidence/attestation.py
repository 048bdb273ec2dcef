"""Attestations: a run's verdict about a commit, signed with the owner's key; and checking one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.envelope import MAX_ENVELOPE, open_envelope, sign_payload
from ktrdr_vm.evidence.signing_key import find_signing_key, read_named, read_public_key
from ktrdr_vm.evidence.statement import ATTESTATION, Summary, make_statement, read_statement
from ktrdr_vm.host.beneath import Place, check_name, open_file
from ktrdr_vm.host.paths import Home
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.report.model import RunReport

# Written after the attestation, about other files of the bundle.
_NOT_LISTED = frozenset({ATTESTATION, "SHA256SUMS.sig"})


def make_attestation(
    report: RunReport, home: Home, policy: OwnerPolicy, files: Mapping[str, str] | None = None
) -> str | None:
    """The signed envelope about the commit that a run judged, and `files` by name with their sha256; None if there is
    no verdict.

    HostError if the owner's key cannot be used.
    """
    statement = make_statement(report, files)
    return sign_payload(statement, find_signing_key(home, policy)) if statement is not None else None


def check_attestation(path: Path, key: Path, *, commit: str | None = None, folder: Path | None = None) -> Summary:
    """The summary in an attestation that `key` signed. UsageError says why it is refused.

    `commit`, unless it is None, must be the beginning of its subject, of 7 digits or more. Files in `folder` must be
    exactly its files.
    """
    try:
        content = read_named(path, MAX_ENVELOPE + 1)
    except OSError as error:
        raise UsageError(
            f"the attestation cannot be read: {error.strerror}", where=str(path), hint="name a readable file"
        ) from None
    summary = read_statement(open_envelope(content, read_public_key(key), str(path)), str(path))
    if commit is not None and (len(commit) < 7 or not summary.commit.startswith(commit.lower())):
        raise UsageError(
            f"this attestation is about the commit {summary.commit}, not about {commit}",
            where=str(path),
            hint="name at least 7 digits of the commit, or verify that commit",
        )
    if folder is not None:
        _check_files(folder, summary.files, str(path))
    return summary


def _check_files(folder: Path, files: Mapping[str, str], where: str) -> None:
    hint = "get the bundle from the owner of the host again"
    if not files:
        raise UsageError(
            "this attestation names no files", where=where, hint="name that of a bundle: bundle/attestation.intoto.json"
        )
    try:
        root = Place(folder.resolve(strict=True))
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "its links lead in a circle"
        raise UsageError(
            f"the folder cannot be read: {why}", where=str(folder), hint="name the folder of a bundle"
        ) from None
    found = {
        str(path.relative_to(root.root)) for path in root.root.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    if beyond := sorted(found - files.keys() - _NOT_LISTED):
        raise UsageError(f"{beyond[0]!a} is not covered by the attestation", where=str(folder), hint=hint)
    for name, digest in files.items():
        try:
            if wrong := check_name(name):
                raise UsageError(f"the attestation names {name[:100]!a}: {wrong}", where=where, hint=hint)
            with os.fdopen(open_file(root, name), "rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError as error:
            raise UsageError(f"{name[:200]!a} cannot be read: {error.strerror}", where=str(folder), hint=hint) from None
        if not same:
            raise UsageError(f"{name[:200]!a} is not the file that was attested", where=str(folder), hint=hint)
