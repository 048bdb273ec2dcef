"""The workspace: a Git repository's branch, tags and default branch as a bundle, then the uncommitted changes that the profile wants.

Submodules that are checked out on the host come along in the same way, each into its folder.

Git runs as the owner of the repository and ignores its configuration, so nothing in the repository is executed.
Tracked links are copied as links and not followed.
"""

from __future__ import annotations

import functools
import io
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace

from ktrdr_vm.errors import GuestError, HostError, UsageError
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.guest.workspace_parts import find_other_refs, list_submodules
from ktrdr_vm.host.beneath import Place, UnsafePathError, open_folder, open_regular
from ktrdr_vm.host.checkout import read_own
from ktrdr_vm.host.git import LIMIT, View, open_view
from ktrdr_vm.host.owner import may_read, reading_as
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.profile.model import Profile, Workspace
from ktrdr_vm.profile.personal import find_personal

_COMMIT = re.compile(rb"(?:[0-9a-f]{40}|[0-9a-f]{64})\n")
MAX_FILES = 20_000
MAX_BYTES = 1024 * 1024 * 1024


def require_clean(repository: Repository, workspace: Workspace) -> None:
    """UsageError if the profile refuses uncommitted changes and there are some."""
    if workspace.uncommitted != "refuse":
        return
    with open_view(repository.place) as view:
        changed, deleted = _uncommitted(view, workspace, repository.commit)
    if changed or deleted:
        shown = ", ".join([*changed, *deleted][:5])
        raise UsageError(
            f"the workspace has uncommitted changes: {shown}",
            where=str(repository.root),
            hint="commit them, or set workspace.uncommitted to include or ignore",
        )


def list_unverified(repository: Repository, profile: Profile) -> tuple[str, ...]:
    """What the gates of the base have in the workspace and those in the fresh VM do not, in words; empty if there is no fresh VM."""
    workspace = profile.workspace
    if profile.workload is None or workspace is None or profile.verify != "fresh":
        return ()
    changed: list[str] = []
    if workspace.uncommitted == "include":
        with open_view(repository.place) as view:
            changed = sorted(name for names in _uncommitted(view, workspace, repository.commit) for name in names)
    shown = f"uncommitted changes ({', '.join(changed[:5])}{', …' if changed[5:] else ''})"
    return (*((shown,) if changed else ()), *(f"untracked files that match {pattern}" for pattern in workspace.include))


def copy_in(repository: Repository, workspace: Workspace, guest: Guest, user: str, instance_id: str, note: Callable[[str], None]) -> None:
    """Fill the workspace in the guest, owned by `user`. `note` is called for each part that was left out."""
    _make_target(guest, workspace.target, user)
    _fill(repository, workspace, guest, instance_id, note)
    _run(guest, _MAKE_NOTES, workspace.target, {})


def _fill(repository: Repository, workspace: Workspace, guest: Guest, instance_id: str, note: Callable[[str], None]) -> None:
    """One repository into the folder `workspace.target`, and its submodules into theirs."""
    # Git bundles refs only, so a commit that no ref names is the HEAD of the view.
    with open_view(repository.place, head=repository.commit if repository.ref == "HEAD" else "") as view:
        changed, deleted = _uncommitted(view, workspace, repository.commit)
        _send_history(view, repository, workspace.target, guest, instance_id)
        _send_changes(view, repository, workspace, (changed, deleted), guest, note)
        submodules = list_submodules(view, repository, note)
    for path, submodule in submodules:
        inner = replace(workspace, source=".", target=f"{workspace.target}/{path}", include=())
        _fill(submodule, inner, guest, instance_id, functools.partial(_note_beneath, note, path))
        note(f"{path} is a submodule: its files are there, and commits made in it do not come back")
    if submodules:
        # One that .gitmodules does not know stays a plain folder with its files.
        names = os.fsencode("\0".join(path for path, _ in submodules)) + b"\0"
        _run(guest, 'cd -- "$TARGET" && xargs -0 -n 1 git submodule --quiet init -- 2>/dev/null || :', workspace.target, {}, stdin=names)


def _note_beneath(note: Callable[[str], None], path: str, text: str) -> None:
    note(f"{path}: {text}")


def _send_history(view: View, repository: Repository, target: str, guest: Guest, instance_id: str) -> None:
    ref = repository.ref or (f"refs/heads/{repository.branch}" if repository.branch else "HEAD")
    default, others = find_other_refs(view, repository.commit)
    with tempfile.TemporaryFile() as bundle:
        view.git(
            "bundle", "create", "--quiet", "-", "--stdin", stdin=os.fsencode("\n".join((ref, *others))) + b"\n", stdout=bundle.fileno()
        )
        bundle.seek(0)
        guest.upload(bundle, "/var/tmp/workspace.bundle", timeout=LIMIT)
    environment = {"COMMIT": repository.commit, "BRANCH": repository.branch or "detached", "DEFAULT": default, "ID": instance_id}
    _run(guest, _UNBUNDLE, target, environment, stdin=_read_shallow(view, repository))


def _send_changes(
    view: View,
    repository: Repository,
    workspace: Workspace,
    changes: tuple[list[str], list[str]],
    guest: Guest,
    note: Callable[[str], None],
) -> None:
    changed, deleted = changes if workspace.uncommitted == "include" else ([], [])
    extra = _leave_personal(_matching_untracked(view, workspace.include, note), note)
    if deleted:
        _run(guest, _DELETE, workspace.target, {}, stdin=os.fsencode("\0".join(deleted)) + b"\0")
    if not changed and not extra:
        return
    with tempfile.TemporaryFile() as archive:
        left_out = _pack(repository.place, [*changed, *extra], archive, repository.owner)
        for name in left_out:
            note(f"{name} was not copied into the workspace: it is not a regular file or link that its owner may read")
        archive.seek(0)
        # Unpacked while it is received, so that large files are written once.
        guest.send(["tar", "--extract", "--no-same-owner", "--unlink-first", "--directory", workspace.target], archive, timeout=LIMIT)


_UNBUNDLE = """set -eu
cd -- "$TARGET"
git init --quiet
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


def _read_shallow(view: View, repository: Repository) -> bytes:
    """The boundary of a shallow clone, which a bundle does not contain. Empty for a complete history."""
    content = read_own(view.checkout.common, "shallow", 1 << 20, repository.place) or b""
    return b"".join(line for line in content.splitlines(keepends=True) if _COMMIT.fullmatch(line))


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
        raise GuestError(
            f"the workspace could not be copied: {stderr.decode('utf-8', 'replace')[-500:].strip()}",
            where="workspace",
            hint="the image requires git and tar, and the disk must be large enough for the repository",
        )


def _uncommitted(view: View, workspace: Workspace, commit: str) -> tuple[list[str], list[str]]:
    """Tracked files that differ from the commit, and those that are gone."""
    if workspace.uncommitted == "ignore":
        return [], []
    options = ("--name-status", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules", "-z")
    listed = view.git("diff", *options, commit, "--")
    # Bytes as they are: a name that is not UTF-8 is still a file's name.
    words = os.fsdecode(listed.stdout).split("\0")[:-1]
    pairs = list(zip(words[0::2], words[1::2], strict=True))
    return [name for status, name in pairs if status != "D"], [name for status, name in pairs if status == "D"]


def _matching_untracked(view: View, globs: tuple[str, ...], note: Callable[[str], None]) -> list[str]:
    """Files that Git does not know. A pattern that brings nothing is named, as is a repository in the repository: Git enters none."""
    found: list[str] = []
    for one in globs:
        listed = view.git("ls-files", "--others", "-z", "--", f":(glob){one}")
        names = [name for name in os.fsdecode(listed.stdout).split("\0") if name]
        for name in names:
            if name.endswith("/"):
                note(f"{name} was left out of the workspace: it is a repository of its own")
        files = [name for name in names if not name.endswith("/")]
        if not names and not view.git("ls-files", "-z", "--", f":(glob){one}").stdout:
            note(f"workspace.include: {one} names no file of the workspace")
        found += files
    return list(dict.fromkeys(found))


def _leave_personal(names: list[str], note: Callable[[str], None]) -> list[str]:
    """Omit personal files, as for mounts. Committed files are copied with the history."""
    for name in names:
        if personal := find_personal(name.split("/")):
            note(f"{name} was not copied into the workspace: a personal folder or file ({personal}) is never copied into a sandbox")
    return [name for name in names if not find_personal(name.split("/"))]


def _pack(root: Place, names: list[str], sink: io.IOBase | tempfile._TemporaryFileWrapper[bytes], owner: tuple[int, int]) -> list[str]:
    """A tar of these files. Each is opened from the root without following links; anything but files and links is omitted."""
    if len(names) > MAX_FILES:
        raise HostError(
            f"{len(names)} files to copy, more than {MAX_FILES}",
            where=str(root.path),
            hint="restrict workspace.include, or commit the files",
        )
    left_out, total = [], 0
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(set(names)):
            folder, _, leaf = name.rpartition("/")
            try:
                with reading_as(owner), open_folder(root, folder.split("/") if folder else ()) as parent:
                    total += _add(archive, name, leaf, parent, owner)
            except (OSError, UnsafePathError):
                left_out.append(name)
            if total > MAX_BYTES:
                raise HostError(f"more than {MAX_BYTES >> 20} MiB to copy", where=str(root.path), hint="restrict workspace.include")
    return left_out


def _add(archive: tarfile.TarFile, name: str, leaf: str, parent: int, owner: tuple[int, int]) -> int:
    """One file or link of an open folder; its bytes. OSError for anything else."""
    facts = os.stat(leaf, dir_fd=parent, follow_symlinks=False)
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(facts.st_mode) & 0o755, int(facts.st_mtime)
    if stat.S_ISLNK(facts.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(leaf, dir_fd=parent)
        archive.addfile(entry)
        return 0
    with os.fdopen(open_regular(leaf, parent), "rb") as file:
        opened = os.fstat(file.fileno())
        if not may_read(opened, owner):
            raise PermissionError(13, "the owner may not read it", name)
        entry.size = opened.st_size
        if entry.size <= MAX_BYTES:
            archive.addfile(entry, file)
        return entry.size
