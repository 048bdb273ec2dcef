"""The revision of what an instance may do: its incarnation, its plan and its grants, as one text such as
`0f3c…-9a41…-2`.

An instance gets a new incarnation when it is created and when it is resumed. The guard counts the changes of its
grants, expiries included, and is the only writer of the revision; its lines of the ledger contain it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.grants.store import GrantBook
from ktrdr_vm.egress.ledger import Ledger
from ktrdr_vm.errors import UsageError

# Digits of the plan's digest in a revision.
PLAN_DIGITS = 16
_TEXT = re.compile(r"([0-9a-f]{12})-([0-9a-f]{16}|0)-([0-9]{1,15})")
_PARTS = ("the instance was created or resumed anew", "its plan changed", "its grants changed")


@dataclass(frozen=True)
class Revision:
    """`plan` are the first digits of the plan's digest; `grants` is the number of changes of the grants."""

    incarnation: str
    plan: str
    grants: int

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.plan}-{self.grants}"


def parse_revision(text: str) -> Revision:
    """ValueError for anything but the text of a revision."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!a} is not a revision")
    return Revision(match[1], match[2], int(match[3]))


def require_revision(expected: str, found: str, where: str) -> None:
    """UsageError unless the two are the same; it names the parts that changed."""
    try:
        wanted = parse_revision(expected)
    except ValueError as error:
        raise UsageError(
            str(error), where="--expect", hint=f"`ktrdr-vm status {where}` shows the revision of the instance"
        ) from None
    now = parse_revision(found)
    if wanted != now:
        pairs = ((wanted.incarnation, now.incarnation), (wanted.plan, now.plan), (wanted.grants, now.grants))
        changed = ", ".join(part for part, (before, after) in zip(_PARTS, pairs, strict=True) if before != after)
        raise UsageError(
            f"the policy of the instance is not the expected one: {changed} (expected {expected}, found {found})",
            where=where,
            hint=f"`ktrdr-vm egress log {where}` shows what was granted; check it, and try again with --expect {found}",
        )


def prepare_revision(directory: Path, plan_digest: str) -> None:
    """Write the initial files of a guard, before it is started. The incarnation of an existing folder is kept."""
    incarnation = directory / "incarnation"
    if not incarnation.exists():
        _write(incarnation, os.urandom(6).hex())
    _write(directory / "plan.digest", plan_digest)


def read_revision(directory: Path) -> str:
    """The last revision that the guard of this folder wrote; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return str(parse_revision((directory / "revision").read_text()))
    return ""


class RevisionKeeper:
    """The revision in a running guard: in its folder, and in each line of its ledger from the change on."""

    def __init__(self, directory: Path, book: GrantBook, ledger: Ledger) -> None:
        self._directory = directory
        self._book = book
        self._ledger = ledger
        self._incarnation = _read(directory / "incarnation") or "0" * 12
        self._plan = _read(directory / "plan.digest")
        book.on_change = self._revise
        self._revise()

    @property
    def current(self) -> Revision:
        return Revision(self._incarnation, self._plan[:PLAN_DIGITS] or "0", self._book.revision)

    @property
    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """The operations of the socket protocol."""
        return {"revision": lambda _: {"revision": str(self.current)}, "plan": self._follow_plan}

    def _follow_plan(self, request: dict[str, Any]) -> dict[str, Any]:
        digest = str(request["digest"])
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError("the digest of a plan has 64 digits")
        if digest != self._plan:
            _write(self._directory / "plan.digest", digest)
            self._plan = digest
            self._revise()
        return {"revision": str(self.current)}

    def _revise(self) -> None:
        text = str(self.current)
        self._ledger.revise(text)
        try:
            _write(self._directory / "revision", text)
        except OSError:
            # Readers find no file, rather than an earlier revision. Commands that expect a revision query the guard.
            (self._directory / "revision").unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    """Replace the file, without syncing: it need not outlive a reboot."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(
        os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w"
    ) as file:
        file.write(text)
    new.rename(path)
