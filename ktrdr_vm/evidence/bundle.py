"""The pull-request bundle of a run: a directory and a `.tar.zst` with everything that a reviewer needs.

Made from the run directory and the fetched commits; the instance need not exist any more.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from ktrdr_vm.errors import HostError, UsageError, keep_end
from ktrdr_vm.evidence.attestation import make_attestation
from ktrdr_vm.evidence.reader import parse_own_report
from ktrdr_vm.evidence.statement import ATTESTATION
from ktrdr_vm.evidence.work import find_work, write_work
from ktrdr_vm.host import process
from ktrdr_vm.host.owner import find_login
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.host.runs import FinishedRun
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.report.pull_request import (
    find_missing,
    make_title,
    render_pull_request,
    require_startability,
)

COPIED = ("report.json", "report.html", "junit.xml", "events.jsonl", "egress.jsonl", "plan.json")
MAX_NOTE = 256 * 1024
_SIGNING_LIMIT = 60.0
_PUBLISH_LIMIT = 600.0
_NAMESPACE = "ktrdr-vm"


@dataclass(frozen=True)
class Bundle:
    """A finished bundle. `ref` may be pushed as `branch`, a name of this program; both are empty if the workload
    committed nothing.

    `work` is the name of the branch in the guest, which is not trusted and must not be used as destination.
    """

    directory: Path
    archive: Path
    title: str
    ref: str
    branch: str
    work: str
    base: str
    missing: tuple[str, ...]
    signed: bool
    attested: bool


def make_bundle(run: Path, owner: tuple[int, int], policy: OwnerPolicy) -> Bundle:
    """Write `bundle/` and `bundle.tar.zst` into the directory of the run, owned by `owner`, and replace an earlier one.

    NotConfirmedError if Startability did not pass, UsageError if the run has no report or its commits no longer exist.
    """
    return _make_bundle(FinishedRun(run), owner, policy)


def _make_bundle(run: FinishedRun, owner: tuple[int, int], policy: OwnerPolicy) -> Bundle:
    contents = {name: content for name in COPIED if (content := _read_copied(run, name)) is not None}
    contents |= {
        name: content for name in run.list("notes", ".md") if (content := _read_copied(run, name, MAX_NOTE)) is not None
    }
    if "report.json" not in contents:
        raise UsageError(
            "this run has no report", where=str(run.path), hint="it is still active, or was killed: apply again"
        )
    # From here on only these bytes are used, because the file on the disk may have been replaced.
    report = parse_own_report(contents["report.json"], run.path)
    require_startability(report)
    changed = sorted(name for name, content in contents.items() if not run.confirms(name, content))
    if changed and policy.signing_key:
        raise UsageError(
            f"{', '.join(changed[:5])} was changed after the run, so the bundle is not signed with the owner's key",
            where=str(run.path),
            hint="bundle a run whose files were not changed, or apply again",
        )
    repository, ref, base = find_work(run, report, contents.get("plan.json"))
    judged = report.verification.commit if report.verification and ref else ""
    notes = _name_notes(contents)
    with run.build() as made:
        directory = made / "bundle"
        directory.mkdir(mode=0o700)
        changes = write_work(repository, base, judged, directory) if repository and judged else ()
        for name in COPIED:
            if name in contents:
                (directory / name).write_bytes(contents[name])
        (directory / "PULL_REQUEST.md").write_text(render_pull_request(report, notes, changes), encoding="utf-8")
        sums = "".join(f"{_digest(path)}  {path.relative_to(directory)}\n" for path in _files(directory))
        (directory / "SHA256SUMS").write_text(sums, encoding="utf-8")
        if policy.signing_key:
            _sign(directory / "SHA256SUMS", policy.signing_key)
        digests = {
            str(path.relative_to(directory)): _digest(path) for path in _files(directory) if path.suffix != ".sig"
        }
        attestation = None if changed else make_attestation(report, run.home, policy, digests)
        if attestation is not None:
            (directory / ATTESTATION).write_text(attestation, encoding="ascii")
        _pack(directory, made / "bundle.tar.zst", f"{report.instance_id}-{report.run_id}")
        run.deliver(made, ("bundle", "bundle.tar.zst"), owner)
    missing = find_missing(report, notes, changes)
    if changed:
        missing = [
            *missing,
            f"a verification of {', '.join(changed[:5])}: changed since the run ended, or written by an older version",
        ]
    if attestation is None:
        missing = [*missing, "attestation: no commit was judged in a fresh VM, or a file was changed since"]
    return Bundle(
        run.path / "bundle",
        run.path / "bundle.tar.zst",
        make_title(report, changes),
        ref,
        f"ktrdr/{report.instance_id}/{report.run_id}" if ref else "",
        ref.removeprefix(f"refs/ktrdr/{report.instance_id}/"),
        base,
        tuple(missing),
        bool(policy.signing_key),
        attestation is not None,
    )


def _read_copied(run: FinishedRun, name: str, limit: int | None = None) -> bytes | None:
    try:
        return run.read(name, limit) if limit else run.read(name)
    except FileNotFoundError:
        return None


def publish(bundle: Bundle, repository: Repository, policy: OwnerPolicy) -> str:
    """Run the publish command of the owner as the owner of the repository; return its output. HostError if it fails."""
    if not policy.publish_command:
        raise UsageError(
            "the owner's policy names no command that publishes",
            where="/etc/ktrdr-vm/policy.yaml",
            hint="set `publish: {command: [...]}` in it; docs/owner-policy.md has an example",
        )
    if not bundle.ref:
        raise UsageError(
            "there is no commit to publish",
            where=str(bundle.directory),
            hint="only what a workload committed can be pushed",
        )
    environment = {
        **{
            name: os.environ[name]
            for name in ("HOME", "USER", "LANG", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME")
            if name in os.environ
        },
        **find_login(repository.owner[0]),
        "KTRDR_REF": bundle.ref,
        "KTRDR_BRANCH": bundle.branch,
        "KTRDR_GUEST_BRANCH": bundle.work,
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
        owner=repository.owner,
    )
    if done.exit_code != 0:
        raise HostError(
            f"publishing failed with exit code {done.exit_code}: {keep_end(done.error_text, 500)}",
            where=" ".join(policy.publish_command),
            hint="the bundle is complete; correct the command and publish again",
        )
    return done.text


def _name_notes(contents: dict[str, bytes]) -> dict[str, str]:
    """The notes of the workload by name."""
    found: dict[str, str] = {}
    for name, content in contents.items():
        if name.startswith("notes/"):
            found.setdefault(name.rpartition("/")[2], content.decode("utf-8", "replace"))
    return found


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sign(sums: Path, key: str) -> None:
    done = process.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", _NAMESPACE, sums], timeout=_SIGNING_LIMIT, check=False
    )
    if done.exit_code != 0:
        raise HostError(
            f"the bundle could not be signed: {keep_end(done.error_text, 300)}",
            where=key,
            hint=(
                "publish.signing_key of the policy must name an SSH key without a passphrase; without it bundles are"
                " unsigned"
            ),
        )


def _pack(directory: Path, archive: Path, name: str) -> None:
    """A reproducible archive, without times and owners."""

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
