"""Fetching the commits of the guest, as a bundle, into refs/ktrdr/<instance_id>/* of the repository of the user.

The bundle is not trusted. Its size, refs and objects are checked; Git unpacks it as the owner of the repository,
who is not root, and nothing in it is checked out or executed.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ktrdr_vm.errors import GuestError, KtrdrError, keep_end
from ktrdr_vm.guest.protocol import Guest, GuestRefusedError
from ktrdr_vm.host.git import BOUNDS, View, open_view
from ktrdr_vm.host.repository import Repository
from ktrdr_vm.identity import Identity

MAX_BUNDLE = 256 * 1024 * 1024
MAX_REFS = 50
MAX_NAME = 200
"""Bytes of the name of a branch, without `refs/heads/`."""
# A name in a ref is a file name, and Git adds `.lock`.
_COMPONENT = 240
# Listing branches needs little memory; unpacking needs memory for one object at a time, but must not trust the size in
# the header of an object: two packed megabytes of zeros are two gigabytes of a tree.
_HEADS = ("prlimit", "--data=1073741824", "--cpu=60", "--fsize=1048576", "--")
_FETCH = ("prlimit", "--data=2147483648", "--cpu=600", f"--fsize={4 * MAX_BUNDLE}", "--")
_BUNDLE = "/var/tmp/ktrdr-commits.bundle"
# Bytes that a name keeps; all others are written as `=` and two digits, so that it is safe as an argument, a path and a
# line.
_PLAIN = re.compile(rb"[^A-Za-z0-9_.+/-]")
# Beneath the refs of an instance, for commits that a ref had before. No branch has this name, because its `=` would be
# escaped.
_KEPT = "=kept"
# A guest with a detached HEAD: HEAD is the work.
DETACHED = "HEAD"
# From git-check-ref-format: names that no branch can have.
_NO_NAME = re.compile(rb"^[/.-]|//|/\.|\.\.|@\{|[\x00-\x20\x7f~^:?*\[\\]|\.lock(?:/|$)|[/.]$")
_HEAD = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64}) (?:refs/heads/(.+)|(HEAD))")

_MAKE = f"""set -eu
cd -- "$TARGET"
rm -f {_BUNDLE}
head=
work=$(git symbolic-ref --quiet HEAD) || {{ work=HEAD; head=HEAD; }}
echo "$work"
# Of every working tree.
git worktree list --porcelain | sed -n 's/^worktree //p' | while IFS= read -r tree; do
  git -C "$tree" status --porcelain --untracked-files=normal 2>/dev/null || :
done | wc -l
# Commits that the host has: the base of the plan, and the one that was copied in, which may be older.
known=
for one in "$BASE" refs/ktrdr/base $(git for-each-ref --format="%(refname)" refs/ktrdr/from); do
  ! git rev-parse --verify --quiet "$one^{{commit}}" >/dev/null || known="$known $one"
done
# Branches that are as the host pushed them. The one that is checked out is the work, whoever made its commits.
same=$(git for-each-ref --format="%(objectname) %(refname)" refs/ktrdr/pushed | while read -r id ref; do
  name=refs/heads/${{ref#refs/ktrdr/pushed/}}
  [ "$name" != "$work" ] || continue
  [ "$(git rev-parse --verify --quiet "$name")" != "$id" ] || echo "$name"
done)
# The branch of the work, then the newest ones. A name that the host would refuse costs no other, and a ref without its
# commit costs no other and is counted.
broken=0
if ! all=$(git for-each-ref --sort=-committerdate --format="%(refname)" refs/heads 2>&1) ||
  printf '%s\\n' "$all" | grep -q '^warning: '; then
  broken=$(git for-each-ref --format="%(objectname)" 2>&1 | git cat-file --batch-check | grep -c ' missing$') || :
  all=$(git for-each-ref --format="%(refname) %(refname)" refs/heads 2>/dev/null |
    git cat-file --batch-check='%(objecttype) %(rest)' | sed -n 's/^commit //p')
fi
some=$({{ [ -n "$head" ] || git for-each-ref --format="%(refname)" "$work"; echo "$all"; }} |
  grep -Fxv -e "${{same:-none}}" | LC_ALL=C grep -Exv -e 'refs/heads/(-.*|.{{{MAX_NAME + 1},}})|' |
  {{ read -r first || exit 0; echo "$first"; grep -Fxv -e "$first"; }} | head -n {MAX_REFS - 1})
new=$(git rev-list $some $head --not $known --max-count=1 --)
sent=
if [ -n "$new" ]; then
  git bundle create --quiet {_BUNDLE} $some $head --not $known --
  # Git leaves out a ref whose name is ambiguous, such as HEAD beside a tag of this name.
  sent=$(git bundle list-heads {_BUNDLE} | cut -d' ' -f1)
  if tip=$(git rev-parse --verify --quiet 'HEAD^{{commit}}') &&
    [ -n "$(git rev-list "$tip" --not $sent $known --max-count=1 --)" ]; then
    echo "the name $work is ambiguous in the guest: rename the other branch or tag of this name" >&2
    exit 1
  fi
fi
# What did not come back: commits under tags and notes, of other working trees and of more branches; and stashes.
apart=$(git rev-list --count --ignore-missing --exclude='refs/stash' --exclude='refs/ktrdr/*' \\
  --exclude='refs/remotes/*' --all --not $sent $known --glob='refs/ktrdr/pushed/*' --)
echo $((apart + broken))
git stash list | wc -l
[ -z "$new" ] || echo made
"""


@dataclass(frozen=True)
class ReturnedRef:
    """One fetched ref. `changed` are all paths that differ from the base commit, without a limit, so that none can be
    hidden."""

    ref: str
    commit: str
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Returned:
    """What came back. The guest says which branch is checked out there, and how much it leaves behind: its word, and no
    more.

    `loose` counts uncommitted paths, `apart` commits on none of the branches that came back, `stashed` stashes.
    """

    refs: tuple[ReturnedRef, ...] = ()
    branch: str = ""
    loose: int = 0
    apart: int = 0
    stashed: int = 0

    def describe_left(self) -> str:
        """What the guest has and did not send, in words; empty when there is nothing."""
        counts = (
            (self.loose, "uncommitted paths"),
            (self.apart, "commits on no branch that came back"),
            (self.stashed, "stashes"),
        )
        return ", ".join(f"{count} {what}" for count, what in counts if count)

    def choose(self, identity: Identity, base_branch: str) -> ReturnedRef | None:
        """The ref of the work: the branch that is checked out in the guest, else that of the base, else the only one.

        None if there is none. GuestError if there are several and none of these.
        """
        by_name = {one.ref.removeprefix(identity.ref_prefix): one for one in self.refs}
        for name in (self.branch, escape_branch(os.fsencode(base_branch))):
            if name in by_name:
                return by_name[name]
        if len(self.refs) > 1:
            raise _lies(
                f"none of its {len(self.refs)} branches is checked out, so the branch of the work is unknown", identity
            )
        return self.refs[0] if self.refs else None


def pull_commits(repository: Repository, base: str, target: str, guest: Guest, identity: Identity) -> Returned:
    """Fetch the commits of branches in the guest that are not in `base`; no ref if there are none. GuestError for an
    invalid bundle."""
    with tempfile.NamedTemporaryFile(prefix="ktrdr-commits-") as file:
        found, standing = download_commits(base, target, guest, identity, cast(BinaryIO, file))
        if not found:
            return Returned((), *standing)
        os.chown(file.name, *repository.owner)
        return Returned(accept_bundle(repository, base, Path(file.name), identity), *standing)


def download_commits(
    base: str, target: str, guest: Guest, identity: Identity, file: BinaryIO
) -> tuple[bool, tuple[str, int, int, int]]:
    """Write the guest's bundle of what is not in `base`, unchecked. False if there is nothing; the branch and the
    counts of `Returned`."""
    made = guest.run(_MAKE, environment={"TARGET": target, "BASE": base}, timeout=300, max_output=64 * 1024)
    if made.exit_code != 0:
        raise GuestError(
            "the guest could not create a bundle of its commits:"
            f" {keep_end(made.stderr.decode('utf-8', 'replace').strip(), 300)}",
            where=identity.instance_id,
            hint=f"check the repository {target} in the guest; it may be damaged",
        )
    if not made.stdout.endswith(b"\nmade\n"):
        return False, _read_standing(made.stdout)
    try:
        guest.download(_BUNDLE, file, max_bytes=MAX_BUNDLE)
    except GuestRefusedError as error:
        raise GuestError(
            f"the guest has new commits, and they were not fetched: {error.message}",
            where=identity.instance_id,
            hint=f"at most {MAX_BUNDLE >> 20} MiB are fetched: commit no build products, or use `ktrdr-vm cp`",
        ) from None
    file.flush()
    return True, _read_standing(made.stdout)


def _read_standing(said: bytes) -> tuple[str, int, int, int]:
    """The branch, and the counts of `Returned`, as the guest tells them; what is neither is nothing."""
    lines = said.split(b"\n")[:4]
    name = lines[0].removeprefix(b"refs/heads/")
    branch = escape_branch(name) if lines[0] == b"HEAD" or (name != lines[0] and is_branch_name(name)) else ""
    loose, apart, stashed = (_read_count(lines[number]) if len(lines) > number else 0 for number in (1, 2, 3))
    return branch, loose, apart, stashed


def _read_count(line: bytes) -> int:
    return int(line) if re.fullmatch(rb" *[0-9]{1,7} *", line) else 0


def escape_branch(name: bytes) -> str:
    """The name of a branch as a part of our refs. It is injective, because the escape character is escaped as well.

    What becomes too long for a file name is continued behind `=/`.
    """
    escaped = _PLAIN.sub(lambda found: b"=%02x" % found[0][0], name).decode("ascii")
    return "/".join("=/".join(_cut(part)) for part in escaped.split("/"))


def _cut(part: str) -> list[str]:
    return [part[at : at + _COMPONENT] for at in range(0, len(part), _COMPONENT)] or [""]


def unescape_branch(name: str) -> str:
    """The name of the branch of which `escape_branch` made a part of a ref."""
    whole = name.replace("=/", "").encode("ascii")
    return os.fsdecode(re.sub(rb"=([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), whole))


def is_branch_name(name: bytes) -> bool:
    """True if Git allows the name, without `refs/heads/`, for a branch."""
    return 0 < len(name) <= MAX_NAME and not _NO_NAME.search(name)


def accept_bundle(repository: Repository, base: str, bundle: Path, identity: Identity) -> tuple[ReturnedRef, ...]:
    """Fetch the branches of a bundle that a guest or another host made. GuestError if it is not valid.

    Everything is checked in a temporary repository first. Then the objects are added to the repository, and the refs at
    the end."""
    with open_view(repository.place) as view, view.quarantine() as apart:
        try:
            refs = _list_heads(apart, bundle, identity)
            if not refs:
                return ()
            specs = [f"+{source}:{identity.ref_prefix}{name}" for _, source, name in refs]
            _fetch(apart, bundle, specs)
            _check_objects(apart)
        except GuestError:
            raise
        except KtrdrError as error:
            raise _lies(keep_end(error.message, 300), identity) from None
        try:
            returned = tuple(
                ReturnedRef(f"{identity.ref_prefix}{name}", commit, list_changed(apart, base, commit))
                for commit, _, name in refs
            )
        except KtrdrError as error:
            raise _lies(f"their changes cannot be listed: {keep_end(error.message, 200)}", identity) from None
        try:
            with open_view(repository.place, writing=True) as target:
                # Commits that the guest took off a branch since they were fetched, by this person or another one.
                before = _list_ours(target, identity)
                displaced = _find_displaced(before, refs, identity)
                for old in [*_find_replaced(apart, before, refs, identity), *displaced.values()]:
                    target.git("update-ref", f"{identity.ref_prefix}{_KEPT}/{old}", old)
                for ref, old in displaced.items():
                    target.git("update-ref", "-d", ref, old)
                _fetch(target, bundle, specs)
        except KtrdrError as error:
            raise _lies(keep_end(error.message, 300), identity) from None
        return returned


def _list_ours(target: View, identity: Identity) -> dict[str, str]:
    """Our refs of the instance, each with its commit."""
    listed = target.git("for-each-ref", "--format=%(refname) %(objectname)", identity.ref_prefix).text
    return dict(line.split(" ") for line in listed.splitlines())


def _find_displaced(before: dict[str, str], refs: list[tuple[str, str, str]], identity: Identity) -> dict[str, str]:
    """Our refs that cannot exist beside a new one, because Git keeps refs like files in folders: `a` and `a/b`."""
    new = {f"{identity.ref_prefix}{name}" for _, _, name in refs}
    folders = {ref[:at] for ref in new for at in range(len(identity.ref_prefix), len(ref)) if ref[at] == "/"}
    return {
        ref: commit for ref, commit in before.items() if ref in folders or any(ref.startswith(f"{one}/") for one in new)
    }


def _find_replaced(
    apart: View, before: dict[str, str], refs: list[tuple[str, str, str]], identity: Identity
) -> list[str]:
    """Commits of our refs that are not in the history of what replaces them."""
    pairs = [(before.get(f"{identity.ref_prefix}{name}", commit), commit) for commit, _, name in refs]
    words = ("merge-base", "--is-ancestor")
    return [
        old
        for old, new in pairs
        if old != new and apart.git(*words, old, new, check=False, bounds=BOUNDS).exit_code != 0
    ]


def _fetch(view: View, bundle: Path, specs: list[str]) -> None:
    options = (
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-recurse-submodules",
        "--no-auto-maintenance",
        "--atomic",
    )
    view.git("fetch", *options, "--end-of-options", str(bundle), *specs, bounds=_FETCH)


def _check_objects(apart: View) -> None:
    """Check each new object with git fsck. `fetch.fsckObjects` does not apply to bundles in every version of Git."""
    for pack in sorted((apart.directory / "objects/pack").glob("*.pack")):
        apart.git("index-pack", "--strict", "-o", str(apart.directory / "checked.idx"), str(pack), bounds=_FETCH)


def _list_heads(view: View, bundle: Path, identity: Identity) -> list[tuple[str, str, str]]:
    """Commit, full name in the bundle and our name of each ref. Lines are split as Git does: at line feeds only."""
    with tempfile.TemporaryFile() as listed:
        view.git("bundle", "list-heads", str(bundle), stdout=listed.fileno(), bounds=_HEADS)
        listed.seek(0)
        lines = [line for line in listed.read().split(b"\n") if line]
    if len(lines) > MAX_REFS:
        raise _lies(f"it names {len(lines)} branches, more than {MAX_REFS}", identity)
    refs = [_check_head(line, identity) for line in lines]
    if len({name for _, _, name in refs}) < len(refs):
        raise _lies("it names a branch twice", identity)
    return refs


def _check_head(line: bytes, identity: Identity) -> tuple[str, str, str]:
    match = _HEAD.fullmatch(line)
    if match is not None and match[3]:
        return match[1].decode(), DETACHED, DETACHED
    if match is None or not is_branch_name(match[2]):
        raise _lies(f"it names {line[:100]!a}, which is not a branch", identity)
    return match[1].decode(), f"refs/heads/{os.fsdecode(match[2])}", escape_branch(match[2])


def list_changed(view: View, base: str, commit: str) -> tuple[str, ...]:
    """All paths in which a commit differs from the base, pointers of submodules included."""
    options = ("--name-only", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "-z")
    with tempfile.TemporaryFile() as listed:
        words = (*options, "--end-of-options", base, commit, "--")
        view.apart.git("diff", *words, stdout=listed.fileno(), bounds=BOUNDS)
        listed.seek(0)
        return tuple(os.fsdecode(name) for name in listed.read().split(b"\0") if name)


def _lies(what: str, identity: Identity) -> GuestError:
    return GuestError(
        f"the guest's commits were refused: {what}",
        where=identity.instance_id,
        hint="no ref was created for them; check the repository in the instance",
    )
