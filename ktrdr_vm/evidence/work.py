"""The work of a run in its pull-request bundle.

commits.bundle   the commits that were judged, exactly, as HEAD of a Git bundle that builds on the base
patches/         a patch for each commit that has one, to read
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.reader import find_workspace
from ktrdr_vm.host.git import BOUNDS, View, open_view, require_commit, require_ref
from ktrdr_vm.host.repository import Repository, resolve_commit
from ktrdr_vm.host.runs import FinishedRun
from ktrdr_vm.report.model import RunReport
from ktrdr_vm.report.pull_request import COMMITS, Change

MAX_PATCHES = 1000
# Four times the most that a guest may return, because Git packs the objects again.
_WRITE = ("prlimit", "--data=2147483648", "--cpu=600", "--fsize=1073741824", "--")


def find_work(run: FinishedRun, report: RunReport, plan: bytes | None) -> tuple[Repository | None, str, str]:
    """The repository, the judged ref, and its base commit. UsageError if the ref has changed since."""
    repository, verification, where = (
        find_workspace(run.path, plan),
        report.verification,
        str(run.path / "report.json"),
    )
    base = require_commit(report.base_commit, where) if report.base_commit else ""
    if repository is None or verification is None or not report.commits or not base:
        return repository, "", base
    judged = verification.commit
    chosen = next((one for one in report.commits if one.commit == judged), None)
    if chosen is None:
        return repository, "", base
    require_commit(judged, where)
    # A commit that `verify` was given by its id has no name.
    ref = judged if chosen.ref == judged else require_ref(chosen.ref, where)
    found = resolve_commit(repository, ref)
    if found != judged:
        raise UsageError(
            f"{ref} is no longer the commit on which the gates ran ({judged[:12]})",
            where=str(repository.root),
            hint="a later run replaced it; bundle that run, or apply again",
        )
    return repository, ref, base


def write_work(repository: Repository, base: str, commit: str, folder: Path) -> tuple[Change, ...]:
    """Write what `commit` has and `base` does not, as HEAD of a Git bundle and a patch for each commit; their subjects,
    newest first.

    No Git bundle is written if there is none. UsageError for more than `MAX_PATCHES`.
    """
    (folder / "patches").mkdir(mode=0o700)
    with open_view(repository.place, head=commit) as view:
        apart = view.apart
        changes = _list_changes(apart, base, commit)
        if changes:
            with (folder / COMMITS).open("wb") as file:
                words = ("bundle", "create", "--quiet", "-", "HEAD", "--not", base)
                apart.git(*words, stdout=file.fileno(), bounds=_WRITE)
        return tuple(_write_patch(apart, one, len(changes) - at, folder / "patches") for at, one in enumerate(changes))


def _list_changes(apart: View, base: str, commit: str) -> list[Change]:
    count = f"--max-count={MAX_PATCHES + 1}"
    listed = apart.git(
        "log", "--format=%H %P%x09%s", count, "--end-of-options", f"{base}..{commit}", "--", bounds=BOUNDS
    )
    changes = []
    # Split at line feeds only: a subject may contain other characters that `splitlines` treats as line ends.
    for line in filter(None, listed.text.split("\n")):
        names, _, subject = line.partition("\t")
        name, *parents = names.split()
        changes.append(Change(name, subject, merge=len(parents) > 1))
    if len(changes) > MAX_PATCHES:
        raise UsageError(
            f"more than {MAX_PATCHES} commits were fetched", where=commit, hint="squash them in the workload"
        )
    return changes


def _write_patch(apart: View, change: Change, number: int, folder: Path) -> Change:
    """The commit with the name of its patch. A merge and a commit without changes have none, and none is written that
    is larger than the bounds of git."""
    if change.merge:
        # Of a merge, `format-patch` would write the patch of another commit.
        return change
    options = ("--binary", "--no-ext-diff", "--no-textconv", "--no-signature", "--no-renames", "--stdout")
    path = folder / f"{number:04}-{change.commit[:12]}.patch"
    with path.open("wb") as file:
        done = apart.git(
            "format-patch", *options, "-1", f"--start-number={number}", "--end-of-options", change.commit,
            stdout=file.fileno(), bounds=BOUNDS, check=False,
        )  # fmt: skip
    if done.exit_code != 0 or not path.stat().st_size:
        path.unlink()
        return change
    return replace(change, patch=path.name)
