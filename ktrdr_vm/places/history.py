"""The history that requests need, as one Git bundle for all that are submitted together, without the commits that the
place has already."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ktrdr_vm.errors import ProvisionError, UsageError, keep_end
from ktrdr_vm.guest.workspace_parts import find_other_refs, list_submodules
from ktrdr_vm.host.git import COMMIT, COMPLETE, View, read_shallow
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.places.request import BASE, BUNDLE, MAX_REFS, SentFile, is_ref

MOST_OFFERED = 20
# Tips of one bundle that a place names: enough to find a common one.
MOST_TIPS = 400
# A bundle that is larger than this part of the one that it builds on becomes the next to build on.
_LARGE = 0.5
_MAX_HEADER = 1024 * 1024
_TIP = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64}) [^\n]*\n")


@dataclass(frozen=True)
class Offer:
    """A bundle that a place has, which builds on no other: its size in bytes, its sha256, and the ids at its tips."""

    size: int
    sha256: str
    tips: tuple[str, ...]


def read_tips(file: IO[bytes]) -> tuple[str, ...]:
    """The ids at the tips of a bundle, bounded, each once. Empty if it builds on another one, or is no bundle."""
    left, first = _MAX_HEADER, file.readline(200)
    if first not in (b"# v2 git bundle\n", b"# v3 git bundle\n"):
        return ()
    found: dict[str, None] = {}
    while left > 0 and (line := file.readline(4096)) != b"\n":
        left -= len(line)
        if line.startswith(b"@"):
            continue
        tip = _TIP.fullmatch(line)
        if tip is None:
            return ()
        found[tip[1].decode("ascii")] = None
    return tuple(found)[:MOST_TIPS]


@dataclass
class History:
    """The bundles of a set of requests. `path` is that of the new one, or None if the place has all commits."""

    view: View
    shallow: str = ""
    path: Path | None = None
    files: tuple[SentFile, ...] = ()
    _refs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def find_refs(self, commit: str) -> tuple[str, ...]:
        """The refs of a workspace at `commit` besides its branch, each `<id> <name>`."""
        if commit not in self._refs:
            names = find_other_refs(self.view, commit)[1][:MAX_REFS]
            listed = self.view.git("for-each-ref", "--format=%(objectname) %(refname)", *names).text if names else ""
            # A pattern of for-each-ref also matches what is beneath it.
            wanted = set(names)
            self._refs[commit] = tuple(
                line for line in listed.splitlines() if is_ref(line) and line.partition(" ")[2] in wanted
            )
        return self._refs[commit]

    def link(self, folder: Path) -> None:
        """Add the new bundle to the folder of a request."""
        if self.path is not None:
            os.link(self.path, folder / BUNDLE)


def pack_history(
    view: View, repositories: Sequence[Repository], path: Path, list_offers: Callable[[], Iterable[Offer]]
) -> History:
    """The history of these commits of one repository, with the new bundle at `path`. UsageError for what cannot be
    sent."""
    first = repositories[0]
    if view.partial:
        raise UsageError(
            "a partial clone cannot be sent", where=str(first.root), hint=f"complete it first with {COMPLETE}"
        )
    history = History(view, read_shallow(view).decode("ascii"))
    wanted: dict[str, None] = {}
    for commit in dict.fromkeys(one.commit for one in repositories):
        _refuse_submodules(view, next(one for one in repositories if one.commit == commit))
        wanted |= dict.fromkeys(line.partition(" ")[2] for line in history.find_refs(commit))
    for one in repositories:
        wanted[one.ref or (f"refs/heads/{one.branch}" if one.branch else "HEAD")] = None
    # The boundary of a shallow history is that of its own bundle.
    offer, there = (None, []) if history.shallow else _choose(view, list_offers())
    made = _write(view, path, [*wanted, *(f"^{tip}" for tip in there)])
    if offer is not None and made and path.stat().st_size > offer.size * _LARGE:
        offer, made = None, _write(view, path, [*wanted])
    history.path = path if made else None
    if offer is not None:
        history.files += (SentFile(BASE, offer.size, offer.sha256),)
    if made:
        with path.open("rb") as file:
            history.files += (SentFile(BUNDLE, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()),)
    return history


def _choose(view: View, offers: Iterable[Offer]) -> tuple[Offer | None, list[str]]:
    """The newest bundle of the place that has a commit of this repository, and its commits that are here."""
    listed = list(offers)
    asked = "".join(f"{tip}^{{commit}}\n" for offer in listed for tip in offer.tips).encode()
    answers = iter(view.git("cat-file", "--batch-check=%(objectname)", stdin=asked).text.splitlines() if asked else ())
    for offer in listed:
        # One answer for each tip: its commit, or `<tip>^{commit} missing`.
        here = [line for _, line in zip(offer.tips, answers, strict=False) if COMMIT.fullmatch(line)]
        if here:
            return offer, sorted(set(here))
    return None, []


def _write(view: View, path: Path, wanted: Sequence[str]) -> bool:
    """Write a bundle. False if it would have no commit."""
    with path.open("wb") as file:
        words = ("bundle", "create", "--quiet", "-", "--stdin")
        done = view.apart.git(*words, stdin=os.fsencode("\n".join(wanted)) + b"\n", stdout=file.fileno(), check=False)
    if done.exit_code == 0:
        return True
    path.unlink()
    if "empty bundle" in done.error_text:
        return False
    raise ProvisionError(
        f"git bundle failed: {keep_end(done.error_text, 500)}",
        where=str(view.checkout.common_path),
        hint="check the repository with `git fsck`",
    )


def _refuse_submodules(view: View, repository: Repository) -> None:
    if names := [path for path, _ in list_submodules(view, repository, lambda _text: None)]:
        raise UsageError(
            f"a workspace with submodules cannot be sent yet: {', '.join(names[:5])}",
            where=str(repository.root),
            hint="apply it on this host, or deinitialize them with `git submodule deinit`",
        )
