"""The pull-request bundle of a run: a directory and a `.tar.zst` that a reviewer needs nothing else for.

Made from what the run left on the host; the instance need not exist any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.guest.workspace import Repository, find_repository
from ktrdr_vm.host import process
from ktrdr_vm.host.git import BOUNDS, git
from ktrdr_vm.profile.policy import OwnerPolicy
from ktrdr_vm.report.pull_request import Change, find_missing, make_title, render_pull_request, require_startability

COPIED = ("report.json", "report.html", "junit.xml", "events.jsonl", "egress.jsonl", "plan.json")
MAX_NOTE = 256 * 1024
MAX_PATCHES = 1000
_SIGNING_LIMIT = 60.0
_PUBLISH_LIMIT = 600.0
_NAMESPACE = "ktrdr-vm"


@dataclass(frozen=True)
class Bundle:
    """A finished bundle. `ref` and `branch` are what may be pushed; empty when the workload committed nothing."""

    directory: Path
    archive: Path
    title: str
    ref: str
    branch: str
    base: str
    missing: tuple[str, ...]
    signed: bool


def make_bundle(run: Path, owner: tuple[int, int], policy: OwnerPolicy) -> Bundle:
    """Write `bundle/` and `bundle.tar.zst` into the run's directory, owned by `owner`, replacing an earlier one.

    NotConfirmedError when Startability did not pass, UsageError when the run has no report or its commits are gone.
    """
    with _held(run):
        return _make_bundle(run, owner, policy)


@contextlib.contextmanager
def _held(run: Path) -> Iterator[None]:
    """Root writes into a folder that is somebody's: while it does, they put nothing in its way, and what is there is no link."""
    before = run.stat()
    if os.geteuid() == 0:
        os.chown(run, 0, 0)
        run.chmod(0o700)
    try:
        for name in (*COPIED, "notes"):
            if (run / name).is_symlink():
                raise UsageError(f"{name} is a link", where=str(run), hint="a run's own files are none; remove it, or apply again")
        yield
    finally:
        if os.geteuid() == 0:
            os.chown(run, before.st_uid, before.st_gid)


def _make_bundle(run: Path, owner: tuple[int, int], policy: OwnerPolicy) -> Bundle:
    report = _read_report(run)
    require_startability(report)
    repository, ref, base = _find_work(run, report)
    directory = run / "bundle"
    if directory.is_symlink():
        directory.unlink()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    changes = _write_patches(repository, base, ref, directory / "patches") if repository and ref else ()
    notes = _read_notes(run / "notes")
    for name in COPIED:
        if (run / name).is_file():
            shutil.copyfile(run / name, directory / name)
    (directory / "PULL_REQUEST.md").write_text(render_pull_request(report, notes, changes), encoding="utf-8")
    sums = "".join(f"{_digest(path)}  {path.relative_to(directory)}\n" for path in _files(directory))
    (directory / "SHA256SUMS").write_text(sums, encoding="utf-8")
    if policy.signing_key:
        _sign(directory / "SHA256SUMS", policy.signing_key)
    archive = run / "bundle.tar.zst"
    archive.unlink(missing_ok=True)
    _pack(directory, archive, f"{report['instance_id']}-{report['run_id']}")
    for path in (directory, archive, *directory.rglob("*")):
        os.chown(path, *owner, follow_symlinks=False)
    branch = ref.rsplit(f"refs/ktrdr/{report['instance_id']}/", 1)[-1]
    return Bundle(
        directory,
        archive,
        make_title(report, changes),
        ref,
        branch,
        base,
        tuple(find_missing(report, notes, changes)),
        bool(policy.signing_key),
    )


def publish(bundle: Bundle, repository: Repository, policy: OwnerPolicy) -> str:
    """Hand the bundle to the owner's command, as the repository's owner; returns what it printed. HostError when it fails."""
    if not policy.publish_command:
        raise UsageError(
            "the owner of this host has named no command that publishes",
            where="/etc/ktrdr-vm/policy.yaml",
            hint="set `publish: {command: [...]}` there; docs/owner-policy.md has an example",
        )
    if not bundle.ref:
        raise UsageError("there is no commit to publish", where=str(bundle.directory), hint="only what a workload committed can be pushed")
    user, group = repository.owner if os.geteuid() == 0 and repository.owner[0] != 0 else (None, None)
    environment = {
        **{name: os.environ[name] for name in ("HOME", "USER", "LANG", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME") if name in os.environ},
        "KTRDR_REF": bundle.ref,
        "KTRDR_BRANCH": bundle.branch,
        "KTRDR_BASE": bundle.base,
        "KTRDR_TITLE": bundle.title,
        "KTRDR_BODY_FILE": str(bundle.directory / "PULL_REQUEST.md"),
        "KTRDR_BUNDLE": str(bundle.archive),
    }
    done = process.run(
        list(policy.publish_command),
        cwd=repository.root,
        timeout=_PUBLISH_LIMIT,
        environment=environment,
        check=False,
        user=user,
        group=group,
    )
    if done.exit_code != 0:
        raise HostError(
            f"publishing failed with exit code {done.exit_code}: {done.error_text[-500:]}",
            where=" ".join(policy.publish_command),
            hint="the bundle is complete; mend the command or what it needs, and publish again",
        )
    return done.text


def find_workspace(run: Path) -> Repository | None:
    """The repository that a run worked on; None when its profile has no workspace."""
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    workspace = plan["profile"]["workspace"]
    return find_repository(Path(plan["facts"]["workspace"]) / workspace["source"]) if workspace else None


def _read_report(run: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            "this run has no report", where=str(run), hint="it still goes on, or was killed; `ktrdr-vm events` shows how far it came"
        ) from None
    if report.get("schema_version") != 1 or "verification" not in report:
        raise UsageError("this report is of another version", where=str(run / "report.json"), hint="apply again with this version")
    return report


def _find_work(run: Path, report: dict[str, Any]) -> tuple[Repository | None, str, str]:
    """The repository, the ref that was judged, and the commit it began from. The ref must still be what was judged."""
    repository, verification = find_workspace(run), report["verification"]
    base = str(report["base_commit"])
    if repository is None or verification is None or not report["commits"]:
        return repository, "", base
    judged = verification["commit"]
    chosen = next((one for one in report["commits"] if one["commit"] == judged), None)
    if chosen is None:
        return repository, "", base
    ref = str(chosen["ref"])
    found = git(repository.root, repository.owner, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", check=False).text.strip()
    if found != judged:
        raise UsageError(
            f"{ref} is no longer the commit that was judged ({judged[:12]})",
            where=str(repository.root),
            hint="a later run replaced it; bundle that run, or apply again",
        )
    return repository, ref, base


def _write_patches(repository: Repository, base: str, ref: str, folder: Path) -> tuple[Change, ...]:
    """The series as `git am` takes it, and its subjects, newest first."""
    folder.mkdir(mode=0o700)
    listed = git(
        repository.root, repository.owner, "log", "--format=%H %s", f"--max-count={MAX_PATCHES + 1}", f"{base}..{ref}", "--", bounds=BOUNDS
    )
    # By line feeds alone, as Git writes them: in a subject other characters may stand that Python takes for the end of a line.
    changes = tuple(Change(*line.partition(" ")[::2]) for line in listed.text.split("\n") if line)
    if len(changes) > MAX_PATCHES:
        raise UsageError(f"more than {MAX_PATCHES} commits came back", where=ref, hint="let the workload squash its work")
    options = ("--binary", "--no-ext-diff", "--no-textconv", "--no-signature", "--no-renames", "--stdout")
    for number, change in enumerate(reversed(changes), 1):
        with (folder / f"{number:04}-{change.commit[:12]}.patch").open("wb") as file:
            git(
                repository.root, repository.owner, "format-patch", *options, "-1", f"--start-number={number}", change.commit,
                stdout=file.fileno(), bounds=BOUNDS,
            )  # fmt: skip
    return changes


def _read_notes(folder: Path) -> dict[str, str]:
    """The workload's notes: regular files that were fetched with limits."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.md")) if folder.is_dir() else ():
        if path.is_file() and not path.is_symlink():
            found.setdefault(path.name, path.read_bytes()[:MAX_NOTE].decode("utf-8", "replace"))
    return found


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sign(sums: Path, key: str) -> None:
    done = process.run(["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", _NAMESPACE, sums], timeout=_SIGNING_LIMIT, check=False)
    if done.exit_code != 0:
        raise HostError(
            f"the bundle could not be signed: {done.error_text[-300:]}",
            where=key,
            hint="publish.signing_key in /etc/ktrdr-vm/policy.yaml names an SSH key without a passphrase, or remove it to go unsigned",
        )


def _pack(directory: Path, archive: Path, name: str) -> None:
    """The same bytes for the same files: no times, no owners."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with (
        archive.open("wb") as file,
        zstandard.ZstdCompressor(level=10).stream_writer(file) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as packed,
    ):
        for path in (directory, *_files(directory)):
            packed.add(path, arcname=str(Path(name) / path.relative_to(directory)), recursive=False, filter=plain)
