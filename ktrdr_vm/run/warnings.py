"""Warnings at the top of a report: observe mode, weaker verification, and commits that change the gates that judge
them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.guest.commits import Returned
from ktrdr_vm.guest.loose_names import shorten
from ktrdr_vm.guest.workspace import Laid
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.report.model import Commits, Verification, WorkloadResult

_TEST_FOLDERS = {
    "test",
    "tests",
    "testing",
    "spec",
    "specs",
    "__tests__",
    "__snapshots__",
    "e2e",
    "cypress",
    "testdata",
}
_TEST_NAME = re.compile(
    r"test_.*|conftest\.py|test-.*\.[a-z]+|.*[._-](test|tests|spec|specs|cy)\.[A-Za-z]+|[A-Za-z0-9]*(Test|Tests|IT|Spec)\.[a-z]+"
)
# Changed files that a line names.
_MOST_NAMES = 10
_OBSERVED = "OBSERVE: every public address could be reached; `ktrdr-vm egress suggest` prints an allowlist for this run"


def find_first_lines(
    commits: Iterable[Commits],
    gathered: Gathered,
    verification: Verification | None = None,
    workload: WorkloadResult | None = None,
    returned: Returned | None = None,
    laid: Laid | None = None,
) -> tuple[str, ...]:
    """Changes of the commits to profile, playbooks and tests, then limits of the verdict."""
    return (
        *((_OBSERVED,) if gathered.plan.observe else ()),
        *_own_judge(gathered),
        *_judges(commits, gathered),
        *_verdict(verification, workload, returned or Returned()),
        *_beneath(laid or Laid()),
    )


def _own_judge(gathered: Gathered) -> Iterable[str]:
    if gathered.base is not None and gathered.base.commit == gathered.plan.facts.base_commit:
        yield "the commit is its own base, so its own profile and playbooks judged it; --base names another one"


def _beneath(laid: Laid) -> Iterable[str]:
    """What was judged besides the commit, and what of the host's files was not."""
    if laid.unknown:
        yield (
            "the VM of the workload began from a snapshot or existed before: the fresh VM had none of its uncommitted"
            " files of the host"
        )
    if laid.files:
        yield f"beneath the commit, the fresh VM had files of the host that no commit has: {shorten(laid.files)}"
    if laid.deleted:
        yield f"in the fresh VM, files were deleted as on the host, though the commit has them: {shorten(laid.deleted)}"
    if laid.overruled:
        yield (
            "the commit has other versions of uncommitted files of the host, and these were judged:"
            f" {shorten(laid.overruled)}"
        )


def _verdict(verification: Verification | None, workload: WorkloadResult | None, returned: Returned) -> Iterable[str]:
    if workload is None or verification is None:
        return
    if verification.mode == "same":
        yield (
            "the gates ran in the VM of the workload, which was root in it; this is weaker than a fresh VM (verify:"
            " same)"
        )
    elif verification.outcome not in ("passed", "skipped"):
        yield (
            f"verification in a fresh VM {verification.outcome}: the commit of the workload"
            f" ({verification.commit[:12]}) does not pass"
        )
    if not returned.refs:
        yield "the workload returned no commit; the gates judged the base"
    others = [one.ref for one in returned.refs if one.commit != verification.commit]
    if others and verification.mode == "fresh":
        judged = verification.commit[:12]
        yield f"the verdict is about {judged}; other refs came back and were not judged: {shorten(others)}"
    if left := returned.describe_left():
        yield f"the workload left behind {left}; they are not part of what was judged"


def _judges(commits: Iterable[Commits], gathered: Gathered) -> tuple[str, ...]:
    """One line for each branch that changes the profile, a playbook or a test. The run used those of the base
    commit."""
    if gathered.repository is None:
        return ()
    root = gathered.base.root if gathered.base else gathered.repository.root
    # The profile, and those that it extends; in a base, by their names in the commit.
    profiles = {gathered.loaded.source, *(document.source for document, _ in gathered.loaded.origins.values())}
    judges = {_inside(root, root / name if gathered.base else Path(name)) for name in profiles}
    for _, playbook in gathered.playbooks:
        judges |= {_inside(root, playbook.path), *(_inside(root, name) for name in _list_files(playbook))}
    lines = []
    for one in commits:
        # What this run used comes first, so that no number of other files hides it.
        touched = [path for path in one.changed if _is_judge(path, judges)]
        touched += [path for path in one.changed if _is_playbook(path) and not _is_judge(path, judges)]
        tests = [path for path in one.changed if _is_test(PurePosixPath(path))]
        if touched:
            lines.append(f"{one.ref} changes the profile or playbooks: {shorten(touched, _MOST_NAMES)}")
        if tests:
            lines.append(f"{one.ref} changes tests: {shorten(tests, _MOST_NAMES)}")
    return tuple(lines)


def _list_files(playbook: Playbook) -> Iterable[Path]:
    """What the playbook includes and sends, and where it would search these files: one that is new there counts."""
    return (Path(playbook.folder, name) for name in playbook.files)


def _is_judge(path: str, judges: set[str]) -> bool:
    """True for a file of `judges`, and for one in a folder of it."""
    return path in judges or any(str(parent) in judges for parent in PurePosixPath(path).parents if parent.name)


def _is_test(path: PurePosixPath) -> bool:
    """By the conventions of pytest, unittest, Go, Jest, Vitest, Mocha, RSpec, JUnit, xUnit and Cypress."""
    folders = {part.lower() for part in path.parts[:-1]}
    return bool(folders & _TEST_FOLDERS) or _TEST_NAME.fullmatch(path.name) is not None


def _inside(root: Path, path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else ""


def _is_playbook(path: str) -> bool:
    return PurePosixPath(path).parts[:1] in (("playbooks",), ("profiles",), ("images",))
