"""A private copy of a repository from a bundle, and bundles of such copies. Nothing of a person's or a system's
configuration is read.

The bundle may come from another host: a checkout without filters, hooks and submodules starts no program.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ktrdr_vm.host import process
from ktrdr_vm.host.git import ENVIRONMENT, LIMIT

_OWN = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "-c", "gc.auto=0")
# Where the refs of bundles are while they are read.
_CAME = "refs/ktrdr-came"


def create_clone(
    bundles: Sequence[Path], folder: Path, *, commit: str, branch: str, refs: Sequence[str] = (), shallow: str = ""
) -> None:
    """A working tree of `commit` in the new `folder`, on `branch`, or detached without one, from bundles that build on
    each other.

    It has the refs of `refs`, each `<id> <name>`, and none of those that the bundles name: a bundle may be older than
    they are.
    """
    format_ = "sha1" if len(commit) == 40 else "sha256"
    _git(
        folder.parent,
        "init",
        "--quiet",
        "--template=",
        f"--object-format={format_}",
        "--initial-branch=ktrdr-empty",
        str(folder),
    )
    if shallow:
        (folder / ".git" / "shallow").write_text(shallow, encoding="ascii")
    fetch = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
    for number, bundle in enumerate(bundles):
        heads = _git(folder, "bundle", "list-heads", str(bundle)).text.splitlines()
        words = [f"+refs/*:{_CAME}/{number}/*"]
        if any(line.endswith(" HEAD") for line in heads):
            words.append(f"+HEAD:{_CAME}/{number}/ktrdr-head")
        _git(folder, *fetch, "--end-of-options", str(bundle), *words)
    came = _git(folder, "for-each-ref", "--format=delete %(refname)", _CAME).text
    lines = [came, *(f"create {name} {object_id}\n" for object_id, _, name in (one.partition(" ") for one in refs))]
    _git(folder, "update-ref", "--stdin", stdin="".join(lines).encode())
    where = ("-B", branch) if branch else ("--detach",)
    _git(folder, "checkout", "--quiet", "--force", "--no-recurse-submodules", *where, commit)


def create_bundle(folder: Path, bundle: Path, heads: dict[str, str], base: str) -> None:
    """A bundle with a branch for each of `heads`, by name, of the commits that `base` does not have. `HEAD` is the
    detached head.

    `folder` is a copy that `create_clone` made. No file is created if there are no such commits.
    """
    apart = bundle.with_name(f".{bundle.name}.git")
    format_ = "sha1" if len(base) == 40 else "sha256"
    _git(
        bundle.parent,
        "init",
        "--quiet",
        "--bare",
        "--template=",
        f"--object-format={format_}",
        "--initial-branch=ktrdr-empty",
        str(apart),
    )
    (apart / "objects" / "info").mkdir(exist_ok=True)
    (apart / "objects" / "info" / "alternates").write_bytes(os.fsencode(folder / ".git" / "objects") + b"\n")
    if (folder / ".git" / "shallow").exists():
        (apart / "shallow").write_bytes((folder / ".git" / "shallow").read_bytes())
    for name, commit in heads.items():
        where = ("--no-deref", "HEAD") if name == "HEAD" else (f"refs/heads/{name}",)
        _git(apart, "update-ref", *where, commit)
    detached = ["HEAD"] if "HEAD" in heads else []
    if _git(apart, "rev-list", "--max-count=1", "--branches", *detached, "--not", base, "--").text.strip():
        _git(apart, "bundle", "create", "--quiet", str(bundle), "--branches", *detached, "--not", base, "--")


def _git(folder: Path, *words: str, stdin: bytes = b"") -> process.Completed:
    return process.run(["git", *_OWN, *words], cwd=folder, timeout=LIMIT, environment=ENVIRONMENT, stdin=stdin)
