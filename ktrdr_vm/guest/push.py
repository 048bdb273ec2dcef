"""Pushing commits and review comments of the host into the repository of a running guest.

Commits arrive as a bundle. Git in the guest adds its objects, and then creates a branch or moves one forward in a
single step, so that a commit of the guest is never lost; a working tree is changed only if it has no change. No hook of
the repository is run for it.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import IO, BinaryIO, cast

from ktrdr_vm.errors import GuestError, UsageError, keep_end
from ktrdr_vm.guest.commits import escape_branch, is_branch_name
from ktrdr_vm.guest.guide import REVIEWS
from ktrdr_vm.guest.protocol import Guest, GuestResult
from ktrdr_vm.host.git import COMMIT, COMPLETE, LIMIT, View, open_view
from ktrdr_vm.host.repository import Repository

MAX_COMMENTS = 256 * 1024
# Tips that the guest names as known to it. More of them only make the bundle smaller.
_MAX_TIPS = 32
_PLACE = "/var/tmp/ktrdr-push-"


@dataclass(frozen=True)
class Push:
    """What is pushed: a commit of the host, comments, or both. Without `branch`, the guest gets a new branch
    `review/<number>`."""

    commit: str = ""
    branch: str = ""
    comments: bytes = b""


@dataclass(frozen=True)
class Pushed:
    """What the guest says that it has now: the branch, whether it is new, and the file with the comments, in the
    workspace."""

    branch: str = ""
    commit: str = ""
    created: bool = False
    comments: str = ""


def push_to(repository: Repository, push: Push, target: str, guest: Guest) -> Pushed:
    """Push into the repository `target` of the guest.

    UsageError if the branch has commits that the pushed one does not have, or is checked out with changes; the guest is
    then as before.
    """
    _check(push)
    name = f"{_PLACE}{secrets.token_hex(8)}"
    environment = {"TARGET": target, "COMMIT": push.commit, "BRANCH": push.branch, "BUNDLE": "", "COMMENTS": ""}
    try:
        if push.commit and _send_commits(repository, push.commit, guest, target, f"{name}.bundle"):
            environment["BUNDLE"] = f"{name}.bundle"
        if push.comments:
            guest.upload(io.BytesIO(push.comments), f"{name}.md", timeout=LIMIT)
            environment["COMMENTS"] = f"{name}.md"
        done = guest.run(_LAND, environment=environment, timeout=LIMIT, max_output=64 * 1024)
    finally:
        guest.run(["rm", "-f", "--", f"{name}.bundle", f"{name}.md"], timeout=60)
    return _read_answer(done, push)


def _check(push: Push) -> None:
    if not push.commit and not push.comments:
        raise UsageError("there is nothing to push", where="push", hint="name a commit, or comments with --comments")
    if push.branch and (not push.commit or not is_branch_name(os.fsencode(push.branch)) or push.branch == "HEAD"):
        raise UsageError(
            f"{push.branch[:200]!a} is not the name of a branch",
            where="--branch",
            hint="use a name such as review/parser",
        )
    if len(push.comments) > MAX_COMMENTS:
        raise UsageError(
            f"the comments have {len(push.comments)} bytes, more than {MAX_COMMENTS}",
            where="--comments",
            hint="push files as commits",
        )
    if b"\0" in push.comments:
        raise UsageError("the comments are not text", where="--comments", hint="push files as commits")


def _send_commits(repository: Repository, commit: str, guest: Guest, target: str, path: str) -> bool:
    """Upload a bundle of what the guest lacks of the history of `commit`. False if it has all of it."""
    said = guest.run(_TIPS, environment={"TARGET": target}, timeout=60, max_output=64 * 1024)
    if said.exit_code != 0:
        raise _refused("it has no repository in its workspace", said)
    with open_view(repository.place, head=commit) as view, tempfile.TemporaryFile() as bundle:
        known = _keep_ancestors(view, commit, said.stdout.decode("ascii", "replace").split()[:_MAX_TIPS])
        if commit in known:
            return False
        _make_bundle(view, repository, commit, known, bundle)
        bundle.seek(0)
        guest.upload(cast(BinaryIO, bundle), path, timeout=LIMIT)
        return True


def _keep_ancestors(view: View, commit: str, tips: Iterable[str]) -> list[str]:
    """Those of the commits that are in the history of `commit`.

    All others have no effect, so that the guest does not learn whether the host has them.
    """
    candidates = [one for one in dict.fromkeys(tips) if COMMIT.fullmatch(one) and len(one) == len(commit)]
    return [
        one for one in candidates if view.git("merge-base", "--is-ancestor", one, commit, check=False).exit_code == 0
    ]


def _make_bundle(view: View, repository: Repository, commit: str, known: list[str], bundle: IO[bytes]) -> None:
    words = ("bundle", "create", "--quiet", "-", "HEAD", *(["--not", *known] if known else []), "--")
    if view.apart.git(*words, stdout=bundle.fileno(), check=False).exit_code != 0:
        raise UsageError(
            f"objects of {commit[:12]} are missing",
            where=str(repository.root),
            hint=f"in a partial or shallow clone, fetch them with {COMPLETE} or `git fetch --unshallow`",
        )


def _read_answer(done: GuestResult, push: Push) -> Pushed:
    if done.exit_code in _REASONS:
        message, hint = _REASONS[done.exit_code]
        raise UsageError(message.format(branch=push.branch or "review"), where="push", hint=hint)
    if done.exit_code != 0:
        raise _refused("it could not store what was pushed", done)
    pushed = Pushed()
    for line in done.stdout.split(b"\n")[:8]:
        word, _, rest = line.partition(b" ")
        if word in (b"created", b"moved") and _is_expected(rest, push):
            pushed = replace(pushed, branch=escape_branch(rest), commit=push.commit, created=word == b"created")
        elif word == b"comments" and re.fullmatch(rb"[0-9]{1,9}", rest):
            pushed = replace(pushed, comments=f"{REVIEWS}/{int(rest)}.md")
    if bool(push.commit) != bool(pushed.branch) or bool(push.comments) != bool(pushed.comments):
        raise _refused("its answer is not valid", done)
    return pushed


def _is_expected(name: bytes, push: Push) -> bool:
    return name == os.fsencode(push.branch) if push.branch else bool(re.fullmatch(rb"review/[0-9]{1,9}", name))


def _refused(what: str, done: GuestResult) -> GuestError:
    said = keep_end(done.stderr.decode("utf-8", "replace").strip(), 300)
    return GuestError(
        f"the guest did not take what was pushed: {what}{f': {said}' if said else ''}",
        where="push",
        hint="check the repository of its workspace in the guest; pushing again is safe",
    )


_NOT_FORWARD, _NOT_CLEAN, _ELSEWHERE, _NO_NUMBER, _NOT_FREE = 70, 71, 72, 73, 74
_REASONS = {
    _NOT_FORWARD: (
        "the branch {branch} of the guest has commits that the pushed commit does not have, and nothing was changed",
        "`ktrdr-vm pull` fetches them; rebase onto them, or push to another branch",
    ),
    _NOT_CLEAN: (
        "the branch {branch} is checked out in the guest with uncommitted changes, and nothing was changed",
        "push to another branch, without --branch to a new one",
    ),
    _ELSEWHERE: (
        "the branch {branch} is in use in the guest, by another working tree or a rebase, and nothing was changed",
        "push to another branch, without --branch to a new one",
    ),
    _NO_NUMBER: (
        "the guest cannot have a branch {branch}: another branch is in its way, and nothing was changed",
        "choose another name with --branch",
    ),
    _NOT_FREE: (
        "the guest has ignored files where the commit adds files to the branch {branch}, and nothing was changed",
        "move these files away in the guest, or push to another branch",
    ),
}

_TIPS = """set -eu
cd -- "$TARGET"
git rev-parse --git-dir >/dev/null
git rev-parse --verify --quiet refs/ktrdr/base || :
git rev-parse --verify --quiet HEAD || :
git for-each-ref --count=30 --sort=-committerdate --format='%(objectname)' refs/heads refs/ktrdr
"""
# `review` in an answer is the highest number so far and one: of branches, also of those that were deleted, or of files.
_LAND = f"""set -eu
cd -- "$TARGET"
git() {{ command git -c core.hooksPath=/dev/null -c gc.auto=0 -c maintenance.auto=false "$@"; }}
next() {{ sort -n | tail -n 1 | {{ read -r most || most=0; echo $((most + 1)); }}; }}

# In use: a rebase, which will set the branch at its end, or the HEAD of a working tree.
is_rebased() {{
  for where in "$common" "$common"/worktrees/*; do
    for file in "$where/rebase-merge/head-name" "$where/rebase-apply/head-name"; do
      [ "$(cat -- "$file" 2>/dev/null)" != "refs/heads/$1" ] || return 0
    done
  done
  return 1
}}
is_head_of() {{ [ "$(cat -- "$1/HEAD" 2>/dev/null)" = "ref: refs/heads/$2" ]; }}
is_linked() {{
  for where in "$common"/worktrees/*; do ! is_head_of "$where" "$1" || return 0; done
  return 1
}}
is_clean() {{
  for name in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD; do [ ! -e "$common/$name" ] || return 1; done
  # Untracked files count, also if the configuration of the guest hides them.
  [ -z "$(git status --porcelain --untracked-files=normal)" ]
}}
# No file of the guest is where the commit adds one: Git would overwrite it without a word if it is ignored.
is_free() {{
  taken=$(command git diff-tree -r -z --name-only --no-renames --diff-filter=A "$1" "$COMMIT" | xargs -0 -r sh -c '
    for path do
      shift
      above=$path
      while [ "$above" != "${{above%/*}}" ]; do
        above=${{above%/*}}
        if [ -L "$above" ] || {{ [ -e "$above" ] && [ ! -d "$above" ]; }}; then path=$above; fi
      done
      if [ -e "$path" ] || [ -L "$path" ]; then set -- "$@" "$path"; fi
    done
    [ $# = 0 ] || git --literal-pathspecs ls-files --others -- "$@"' sh) && [ -z "$taken" ]
}}

move() {{
  old=$(git rev-parse --verify "refs/heads/$1")
  git merge-base --is-ancestor "$old" "$COMMIT" || exit {_NOT_FORWARD}
  [ "$old" != "$COMMIT" ] || return 0
  if is_rebased "$1" || is_linked "$1"; then exit {_ELSEWHERE}; fi
  if is_head_of "$common" "$1"; then
    is_clean || exit {_NOT_CLEAN}
    is_free "$old" || exit {_NOT_FREE}
    # Git itself checks again that the tree has no change, and that the branch is still an ancestor.
    config="-c core.hooksPath=/dev/null -c receive.denyCurrentBranch=updateInstead -c receive.denyNonFastForwards=true"
    git push --quiet --no-verify --receive-pack="git $config receive-pack" . "$COMMIT:refs/heads/$1" >&2 || exit {_NOT_CLEAN}
  else
    git update-ref -m 'ktrdr-vm push' "refs/heads/$1" "$COMMIT" "$old" || exit {_NOT_FORWARD}
  fi
}}
land() {{
  if [ -n "$BRANCH" ]; then
    if git update-ref -m 'ktrdr-vm push' "refs/heads/$BRANCH" "$COMMIT" '' 2>/dev/null; then word=created
    elif git show-ref --verify --quiet "refs/heads/$BRANCH"; then move "$BRANCH"; word=moved
    else exit {_NO_NUMBER}; fi
    return
  fi
  for try in 1 2 3 4 5; do
    names=$(git for-each-ref --format='%(refname)' refs/heads/review refs/ktrdr/pushed/review)
    BRANCH=review/$(echo "$names" | sed -n 's#.*/review/\\([1-9][0-9]\\{{0,7\\}}\\)$#\\1#p' | next)
    ! git update-ref -m 'ktrdr-vm push' "refs/heads/$BRANCH" "$COMMIT" '' || {{ word=created; return; }}
  done
  exit {_NO_NUMBER}
}}
comment() {{
  mkdir -p {REVIEWS}
  git check-ignore --quiet {REVIEWS}/1.md || echo /.ktrdr/ >> "$common/info/exclude"
  part=$(mktemp {REVIEWS}/.part.XXXXXX)
  [ -z "$COMMIT" ] || printf 'branch: %s\\ncommit: %s\\n\\n' "$BRANCH" "$COMMIT" > "$part"
  cat -- "$COMMENTS" >> "$part"
  chmod 644 "$part"
  for try in 1 2 3 4 5; do
    number=$(ls -- {REVIEWS} | sed -n 's/^\\([1-9][0-9]\\{{0,7\\}}\\)\\.md$/\\1/p' | next)
    if ln -- "$part" "{REVIEWS}/$number.md" 2>/dev/null; then
      rm -f -- "$part"
      echo "comments $number"
      return
    fi
  done
  rm -f -- "$part"
  echo 'no number is free for the comments' >&2
  exit 1
}}

common=$(git rev-parse --git-common-dir)
if [ -n "$COMMIT" ]; then
  [ -z "$BUNDLE" ] || git bundle unbundle "$BUNDLE" >/dev/null
  git cat-file -e "$COMMIT^{{commit}}"
  land
  # What came from the host, so that `pull` does not take it for work of the guest.
  git update-ref "refs/ktrdr/pushed/$BRANCH" "$COMMIT" || :
  echo "$word $BRANCH"
fi
[ -z "$COMMENTS" ] || comment
"""
