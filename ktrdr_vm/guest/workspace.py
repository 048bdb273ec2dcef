"""The workspace: one ref of a Git repository as a bundle, then the uncommitted changes that the profile wants.

Git runs as the repository's owner, with no hook, monitor or foreign configuration. Nothing that a file in it says is executed.
Tracked links are copied as links and not followed.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.errors import GuestError, HostError, UsageError
from ktrdr_vm.guest.protocol import Guest
from ktrdr_vm.host.git import LIMIT, git
from ktrdr_vm.profile.model import Workspace

_COMMIT = re.compile(rb"(?:[0-9a-f]{40}|[0-9a-f]{64})\n")
MAX_FILES = 20_000
MAX_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True)
class Repository:
    """A checked-out Git repository as it stands. `branch` is empty on a detached HEAD.

    `ref`, when given, is where `commit` is taken from instead, as for commits that came back from a guest.
    """

    root: Path
    branch: str
    commit: str
    owner: tuple[int, int]
    name: str
    ref: str = ""


def find_repository(directory: Path) -> Repository:
    """The repository that a folder belongs to. UsageError when there is none, or no commit in it."""
    try:
        facts = directory.stat()
    except OSError as error:
        raise UsageError(
            f"the workspace cannot be opened: {error.strerror}", where=str(directory), hint="name a folder with --workspace"
        ) from None
    owner = (facts.st_uid, facts.st_gid)
    found = git(directory, owner, "rev-parse", "--show-toplevel", "--verify", "HEAD", check=False)
    lines = found.text.splitlines()
    if found.exit_code != 0 or len(lines) != 2:
        raise UsageError(
            f"the workspace is no Git repository with a commit: {found.error_text[-200:]}",
            where=str(directory),
            hint="run `git init` and commit, or name another folder with --workspace",
        )
    root = Path(os.fsdecode(found.stdout.splitlines()[0]))
    branch = git(root, owner, "symbolic-ref", "--quiet", "--short", "HEAD", check=False).text.strip()
    # A linked worktree lies anywhere; the repository's name is the main one's.
    common = Path(git(root, owner, "rev-parse", "--path-format=absolute", "--git-common-dir").text.strip())
    name = common.parent.name if common.name == ".git" else common.name.removesuffix(".git")
    return Repository(root, branch, lines[1], owner, name)


def require_clean(repository: Repository, workspace: Workspace) -> None:
    """UsageError when the profile refuses uncommitted changes and there are some."""
    if workspace.uncommitted != "refuse":
        return
    changed, deleted = _uncommitted(repository, workspace)
    if changed or deleted:
        shown = ", ".join([*changed, *deleted][:5])
        raise UsageError(
            f"the workspace has uncommitted changes: {shown}",
            where=str(repository.root),
            hint="commit them, or set workspace.uncommitted to include or ignore",
        )


def copy_in(repository: Repository, workspace: Workspace, guest: Guest, user: str, instance_id: str, note: Callable[[str], None]) -> None:
    """Fill the workspace in the guest, owned by `user`. `note` hears what was left out."""
    changed, deleted = _uncommitted(repository, workspace)
    _make_target(guest, workspace.target, user)
    with tempfile.TemporaryFile() as bundle:
        ref = repository.ref or (f"refs/heads/{repository.branch}" if repository.branch else "HEAD")
        git(repository.root, repository.owner, "bundle", "create", "--quiet", "-", ref, stdout=bundle.fileno())
        bundle.seek(0)
        guest.upload(bundle, "/var/tmp/workspace.bundle", timeout=LIMIT)
    _run(
        guest,
        _UNBUNDLE,
        workspace.target,
        {"COMMIT": repository.commit, "BRANCH": repository.branch or "detached", "ID": instance_id},
        stdin=_read_shallow(repository),
    )
    if workspace.uncommitted != "include":
        changed, deleted = [], []
    extra = _matching_untracked(repository, workspace.include)
    if deleted:
        _run(guest, 'cd -- "$TARGET" && xargs -0r rm -f --', workspace.target, {}, stdin=os.fsencode("\0".join(deleted)) + b"\0")
    if not changed and not extra:
        return
    with tempfile.TemporaryFile() as archive:
        left_out = _pack(repository.root, [*changed, *extra], archive)
        for name in left_out:
            note(f"{name} was left out of the workspace: it is no regular file, folder or link")
        archive.seek(0)
        # Unpacked as it comes: written once and read never, a large file costs half.
        guest.send(["tar", "--extract", "--no-same-owner", "--unlink-first", "--directory", workspace.target], archive, timeout=LIMIT)


_UNBUNDLE = """set -eu
cd -- "$TARGET"
git init --quiet
cat > .git/shallow
[ -s .git/shallow ] || rm .git/shallow
git config user.name "$ID"
git config user.email "$ID@ktrdr.invalid"
git fetch --quiet --no-tags /var/tmp/workspace.bundle "+HEAD:refs/ktrdr/base" 2>/dev/null \\
  || git fetch --quiet --no-tags /var/tmp/workspace.bundle "+refs/*:refs/ktrdr/from/*"
git -c advice.detachedHead=false checkout --quiet -B "$BRANCH" "$COMMIT"
git update-ref refs/ktrdr/base "$COMMIT"
echo /.ktrdr/ >> .git/info/exclude
mkdir -p .ktrdr/notes
rm -f /var/tmp/workspace.bundle
"""


def _read_shallow(repository: Repository) -> bytes:
    """Where the history of a shallow clone ends, as CI makes them: a bundle cannot say it. Empty for a whole history."""
    named = git(repository.root, repository.owner, "rev-parse", "--git-path", "shallow")
    try:
        descriptor = os.open(repository.root / os.fsdecode(named.stdout).rstrip("\n"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return b"".join(line for line in file.read(1 << 20).splitlines(keepends=True) if _COMMIT.fullmatch(line))


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
            f"the workspace could not be filled: {stderr.decode('utf-8', 'replace')[-500:].strip()}",
            where="workspace",
            hint="the image needs git and tar, and the disk must be large enough for the repository",
        )


def _uncommitted(repository: Repository, workspace: Workspace) -> tuple[list[str], list[str]]:
    """Tracked files that differ from HEAD, and those that are gone."""
    if workspace.uncommitted == "ignore":
        return [], []
    listed = git(
        repository.root, repository.owner, "diff", "--name-status", "--no-renames", "--no-ext-diff", "--ignore-submodules", "-z", "HEAD"
    )
    # Bytes as they are: a name that is not UTF-8 is still a file's name.
    words = os.fsdecode(listed.stdout).split("\0")[:-1]
    pairs = list(zip(words[0::2], words[1::2], strict=True))
    return [name for status, name in pairs if status != "D"], [name for status, name in pairs if status == "D"]


def _matching_untracked(repository: Repository, globs: tuple[str, ...]) -> list[str]:
    if not globs:
        return []
    listed = git(repository.root, repository.owner, "ls-files", "--others", "-z", "--", *(f":(glob){one}" for one in globs))
    return [name for name in os.fsdecode(listed.stdout).split("\0") if name]


def _pack(root: Path, names: list[str], sink: io.IOBase | tempfile._TemporaryFileWrapper[bytes]) -> list[str]:
    """A tar of these files. Each is opened from the root without following a link; what is no file or link is left out."""
    if len(names) > MAX_FILES:
        raise HostError(
            f"{len(names)} files to copy, more than {MAX_FILES}",
            where=str(root),
            hint="narrow workspace.include, or commit the files",
        )
    left_out, total = [], 0
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(set(names)):
            try:
                parent = _open_parent(root, name)
            except OSError:
                left_out.append(name)
                continue
            try:
                leaf = Path(name).name
                facts = os.stat(leaf, dir_fd=parent, follow_symlinks=False)
                entry = tarfile.TarInfo(name)
                entry.mode, entry.mtime = stat.S_IMODE(facts.st_mode) & 0o755, int(facts.st_mtime)
                if stat.S_ISLNK(facts.st_mode):
                    entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(leaf, dir_fd=parent)
                    archive.addfile(entry)
                elif stat.S_ISREG(facts.st_mode):
                    with os.fdopen(os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent), "rb") as file:
                        entry.size = os.fstat(file.fileno()).st_size
                        total += entry.size
                        if total > MAX_BYTES:
                            raise HostError(f"more than {MAX_BYTES >> 20} MiB to copy", where=str(root), hint="narrow workspace.include")
                        archive.addfile(entry, file)
                else:
                    left_out.append(name)
            except OSError:
                left_out.append(name)
            finally:
                os.close(parent)
    return left_out


def _open_parent(root: Path, name: str) -> int:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    for part in Path(name).parent.parts:
        try:
            deeper = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = deeper
    return descriptor
