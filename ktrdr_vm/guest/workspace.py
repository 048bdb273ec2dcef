"""The workspace: a Git repository's branch, tags and default branch as a bundle, then the uncommitted changes that the
profile wants.

Submodules that are checked out on the host come along in the same way, each into its folder.

Git runs as the owner of the repository and ignores its configuration, so nothing in the repository is executed.
Tracked links are copied as links and not followed.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ktrdr_vm.errors import GuestError, UsageError, keep_end
from ktrdr_vm.guest.loose_files import LooseFiles, Part, lay_beneath, read_loose
from ktrdr_vm.guest.loose_names import find_uncommitted
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.guest.workspace_parts import find_hidden, find_other_refs, list_submodules
from ktrdr_vm.host.git import COMPLETE, LIMIT, View, open_view, read_shallow
from ktrdr_vm.host.process import Completed
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.profile.model import Workspace


@dataclass(frozen=True)
class Laid:
    """The files of the host that the fresh VM has besides the commit, and those of which the commit has another
    version."""

    files: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    overruled: tuple[str, ...] = ()
    unknown: bool = False
    """True if it was not stored which files the VM of the workload had: it began from a snapshot, or existed before."""


def require_clean(repository: Repository, workspace: Workspace) -> None:
    """UsageError if the profile refuses uncommitted changes and there are some."""
    if workspace.uncommitted != "refuse":
        return
    with open_view(repository.place) as view:
        changed, deleted = find_uncommitted(view, repository.commit)
    if changed or deleted:
        shown = ", ".join([*changed, *deleted][:5])
        raise UsageError(
            f"the workspace has uncommitted changes: {shown}",
            where=str(repository.root),
            hint="commit them, or set workspace.uncommitted to include or ignore",
        )


def copy_in(
    repository: Repository,
    workspace: Workspace,
    guest: Guest,
    user: str,
    instance_id: str,
    note: Callable[[str], None],
    *,
    keep: Path | None = None,
) -> None:
    """Fill the workspace in the guest, owned by `user`. `note` is called for each part that was left out.

    The uncommitted files are read from the host once, and stored in the folder `keep` for the fresh VM of the
    verification.
    """
    _make_target(guest, workspace.target, user)
    parts = _fill(repository, workspace.target, guest, instance_id, note)
    with read_loose(parts, workspace, note) as loose:
        if keep is not None:
            loose.store(keep)
        _put(loose, workspace.target, guest)
    _run(guest, _MAKE_NOTES, workspace.target, {})


def copy_returned(
    repository: Repository,
    workspace: Workspace,
    guest: Guest,
    user: str,
    instance_id: str,
    note: Callable[[str], None],
    *,
    loose: LooseFiles | None,
) -> Laid:
    """The same with a commit of the workload as the commit of `repository`, and the files that `copy_in` stored beneath
    it."""
    _make_target(guest, workspace.target, user)
    _fill(repository, workspace.target, guest, instance_id, note)
    laid = Laid(unknown=loose is None)
    if loose is not None and not loose.is_empty:
        with lay_beneath(loose, repository) as (kept, overruled):
            _put(kept, workspace.target, guest)
            laid = Laid((*kept.changed, *kept.included), kept.deleted, overruled)
    _run(guest, _MAKE_NOTES, workspace.target, {})
    return laid


def _fill(
    repository: Repository, target: str, guest: Guest, instance_id: str, note: Callable[[str], None]
) -> list[Part]:
    """The commits of one repository in the folder `target`, and those of its submodules in theirs. All of them, with
    their paths."""
    with open_view(repository.place, head=_find_head(repository)) as view:
        _send_history(view, repository, target, guest, instance_id, note)
        submodules = list_submodules(view, repository, note)
    parts: list[Part] = [("", repository)]
    for path, submodule in submodules:
        inner = _fill(submodule, f"{target}/{path}", guest, instance_id, functools.partial(_note_beneath, note, path))
        parts += [(f"{path}/{below}" if below else path, one) for below, one in inner]
        note(f"{path} is a submodule: its files are there, and commits made in it do not come back")
    if submodules:
        # One that .gitmodules does not know stays a plain folder with its files.
        names = os.fsencode("\0".join(path for path, _ in submodules)) + b"\0"
        _run(
            guest,
            'cd -- "$TARGET" && xargs -0 -n 1 git submodule --quiet init -- 2>/dev/null || :',
            target,
            {},
            stdin=names,
        )
    return parts


def _find_head(repository: Repository) -> str:
    """The commit that stands for HEAD: Git bundles refs only, and a commit that `verify` was given may have none."""
    return repository.commit if repository.ref == "HEAD" else ""


def _note_beneath(note: Callable[[str], None], path: str, text: str) -> None:
    note(f"{path}: {text}")


def _send_history(
    view: View, repository: Repository, target: str, guest: Guest, instance_id: str, note: Callable[[str], None]
) -> None:
    """The history of the branch, or of a partial clone that lacks objects of it, the commit alone."""
    ref = repository.ref or (f"refs/heads/{repository.branch}" if repository.branch else "HEAD")
    default, others = find_other_refs(view, repository.commit)
    hidden = find_hidden(view, [ref, f"refs/heads/{default}"])
    if ref in hidden:
        raise UsageError(
            f"the name {ref} is ambiguous: there is also {hidden[ref]}, and Git would copy neither",
            where=str(repository.root),
            hint=f"rename {hidden[ref]}, for example with `git branch -m`, or delete it with `git update-ref -d`",
        )
    if default and f"refs/heads/{default}" in hidden:
        note(f"the guest has no branch {default}: its name is ambiguous beside {hidden[f'refs/heads/{default}']}")
        default = ""
    shallow = read_shallow(view)
    with tempfile.TemporaryFile() as bundle:
        if _make_bundle(view, [ref, *others], bundle, check=not view.partial).exit_code != 0:
            note(
                f"the guest has no earlier history: this is a partial clone without its objects ({COMPLETE} fetches"
                " them)"
            )
            shallow, default = (
                b"".join(sorted({*shallow.splitlines(keepends=True), *_find_ends(view, repository.commit)})),
                "",
            )
            _bundle_alone(repository, ref, shallow, bundle)
        bundle.seek(0)
        guest.upload(bundle, "/var/tmp/workspace.bundle", timeout=LIMIT)
    environment = {
        "COMMIT": repository.commit,
        "BRANCH": repository.branch or "detached",
        "DEFAULT": default,
        "ID": instance_id,
    }
    environment["FORMAT"] = "sha1" if len(repository.commit) == 40 else "sha256"
    _run(guest, _UNBUNDLE, target, environment, stdin=shallow)


def _make_bundle(view: View, refs: list[str], bundle: IO[bytes], *, check: bool) -> Completed:
    bundle.seek(0)
    bundle.truncate()
    wanted = os.fsencode("\n".join(refs)) + b"\n"
    words = ("bundle", "create", "--quiet", "-", "--stdin")
    return view.apart.git(*words, stdin=wanted, stdout=bundle.fileno(), check=check)


def _bundle_alone(repository: Repository, ref: str, shallow: bytes, bundle: IO[bytes]) -> None:
    """The commit with the tags that point at it, without what is before `shallow`. UsageError if objects of it are
    missing."""
    with open_view(repository.place, shallow=shallow, head=_find_head(repository)) as cut:
        tags = cut.git(
            "for-each-ref", f"--points-at={repository.commit}", "--format=%(refname)", "refs/tags"
        ).text.split()
        if _make_bundle(cut, [ref, *tags], bundle, check=False).exit_code != 0:
            raise UsageError(
                f"the repository is a partial clone, and objects of {repository.commit[:12]} are missing",
                where=str(repository.root),
                hint=f"fetch them with {COMPLETE}; this program fetches nothing into a repository",
            )


def _find_ends(view: View, commit: str) -> set[bytes]:
    """The newest commits in the history of `commit` that the host did not get from a guest: the commit itself, or what
    it is based on."""
    words = ("rev-list", "--boundary", commit, "--not", "HEAD", "--branches", "--remotes", "--tags", "--")
    found = {line[1:] for line in view.git(*words).stdout.splitlines(keepends=True) if line.startswith(b"-")}
    return found or {commit.encode() + b"\n"}


def _put(loose: LooseFiles, target: str, guest: Guest) -> None:
    """Delete and write the files in the guest."""
    if loose.deleted:
        _run(guest, _DELETE, target, {}, stdin=os.fsencode("\0".join(loose.deleted)) + b"\0")
    if loose.changed or loose.included:
        loose.archive.seek(0)
        # Unpacked while it is received, so that large files are written once.
        guest.send(
            ["tar", "--extract", "--no-same-owner", "--unlink-first", "--directory", target],
            loose.archive,
            timeout=LIMIT,
        )


_UNBUNDLE = """set -eu
cd -- "$TARGET"
git init --quiet --object-format="$FORMAT"
cat > .git/shallow
[ -s .git/shallow ] || rm .git/shallow
git config user.name "$ID"
git config user.email "$ID@ktrdr.invalid"
bundle=/var/tmp/workspace.bundle
git fetch --quiet --no-tags "$bundle" "+HEAD:refs/ktrdr/base" 2>/dev/null || :
git fetch --quiet --no-tags "$bundle" "+refs/tags/*:refs/tags/*" "+refs/remotes/*:refs/remotes/*" "+refs/*:refs/ktrdr/from/*"
git -c advice.detachedHead=false checkout --quiet -B "$BRANCH" "$COMMIT"
git update-ref refs/ktrdr/base "$COMMIT"
# The default branch by its name, as in a clone, where it is another one.
if [ -n "$DEFAULT" ] && [ "$DEFAULT" != "$BRANCH" ]; then
  git branch --quiet --no-track -- "$DEFAULT" "refs/ktrdr/from/heads/$DEFAULT"
fi
rm -f "$bundle"
"""
_MAKE_NOTES = """set -eu
cd -- "$TARGET"
echo /.ktrdr/ >> .git/info/exclude
mkdir -p .ktrdr/notes
"""
# With the folders that this leaves empty: a link or a file may be where one was.
_DELETE = """set -eu
cd -- "$TARGET"
xargs -0r sh -c '
for one; do
  rm -f -- "$one"
  folder=$(dirname -- "$one")
  [ "$folder" = . ] || rmdir -p --ignore-fail-on-non-empty -- "$folder" 2>/dev/null || :
done' sh
"""


_HINTS = (
    ("No space left", "increase resources.disk: the repository does not fit"),
    ("not found", "the image requires git, tar, xargs and sudo"),
    ("Read-only file system", "choose another workspace.target: this folder of the guest cannot be written to"),
    ("Permission denied", "choose another workspace.target: the login user may not write there"),
)


def _make_target(guest: Guest, target: str, user: str) -> None:
    made = guest.run(
        'mkdir -p -- "$TARGET" && chown -- "$OWNER:" "$TARGET"',
        environment={"TARGET": target, "OWNER": user},
        become=True,
        timeout=60,
    )
    _check(made.exit_code, made.stderr)


def _run(guest: Guest, script: str, target: str, environment: dict[str, str], stdin: bytes = b"") -> None:
    done = guest.run(script, environment={"TARGET": target, **environment}, stdin=stdin, timeout=LIMIT)
    _check(done.exit_code, done.stderr)


def _check(exit_code: int, stderr: bytes) -> None:
    if exit_code != 0:
        said = keep_end(stderr.decode("utf-8", "replace").strip(), 500)
        hint = next(
            (hint for word, hint in _HINTS if word in said),
            "the message is that of the guest; `ktrdr-vm logs` shows its console",
        )
        raise GuestError(f"the workspace could not be copied: {said}", where="workspace", hint=hint)
