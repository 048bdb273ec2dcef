"""Git on the host, as the owner of the repository. It reads objects, refs and index of the repository, and never its
configuration.

Each call uses a temporary Git folder with our configuration and the parts of the repository by descriptor. So no hook,
filter, alias, helper, promised object or included file of the repository can start a program.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ktrdr_vm.errors import KtrdrError, UsageError, keep_end
from ktrdr_vm.host import process
from ktrdr_vm.host.beneath import Place, open_file
from ktrdr_vm.host.checkout import Checkout, open_checkout, read_own, refuse_other_tree

LIMIT = 600.0
# `--refetch` alone applies the filter of the clone again.
COMPLETE = "`git fetch --refetch --no-filter`"
# For commands that read objects of a guest: a few hundred bytes of trees can name 10^12 files.
BOUNDS = ("prlimit", "--data=1073741824", "--cpu=120", "--fsize=67108864", "--")
# For all others: a repository that came as an archive can have refs and objects of any size in a few kilobytes.
_MEMORY = ("prlimit", "--data=4294967296", "--")
# In a repository of root, Git also reads files that others wrote: it may read all files then, and change none.
_NOBODY = 65534
_CAPABILITY = "dac_read_search"
_READER = (
    "setpriv",
    "--securebits=+no_setuid_fixup",
    f"--reuid={_NOBODY}",
    f"--regid={_NOBODY}",
    "--clear-groups",
    "--no-new-privs",
    *(f"--{kind}=-all,+{_CAPABILITY}" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
    "--",
)
# Words of a document that may become arguments of Git.
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
REF = re.compile(r"refs/(?:[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]*/)*[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]*")

# An index of several packs names them by paths, which may lead to another repository; each pack has its own as well.
_CONFIG = """[core]
\trepositoryFormatVersion = {version}
\tbare = false
\thooksPath = /dev/null
\tfsmonitor = false
\tquotePath = false
\tlogAllRefUpdates = false
\tattributesFile = /dev/null
\texcludesFile = /dev/null
\tbigFileThreshold = 64m
\tmultiPackIndex = false
[pack]
\twindowMemory = 512m
\tthreads = 2
[gc]
\tauto = 0
[maintenance]
\tauto = false
[protocol]
\tallow = never
[protocol "file"]
\tallow = always
"""
# Settings for comparing the working tree. Their values are from a fixed set, without programs, files or paths.
_KEPT = {
    "core.filemode": r"true|false",
    "core.symlinks": r"true|false",
    "core.ignorecase": r"true|false",
    "core.autocrlf": r"true|false|input",
    "core.eol": r"lf|crlf|native",
    "core.sparsecheckout": r"true|false",
    "core.sparsecheckoutcone": r"true|false",
    "index.sparse": r"true|false",
    "extensions.objectformat": r"sha1|sha256",
}
# Extensions of the repository format that do not affect what is read here.
_HARMLESS = frozenset(
    f"extensions.{name}"
    for name in "noop worktreeconfig partialclone preciousobjects relativeworktrees refstorage".split()
)
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_ALLOW_PROTOCOL": "file",
    "GIT_LITERAL_PATHSPECS": "0",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "false",
    "HOME": "/nonexistent",
}
_MAX_CONFIG = 1 << 20
_MAX_SYMBOLIC = 4096
# An empty folder of the temporary Git folder.
_NO_TREE = "ktrdr-no-tree"
_SHALLOW = re.compile(rb"(?:[0-9a-f]{40}|[0-9a-f]{64})\n")


@dataclass(frozen=True)
class View:
    """A temporary Git folder for a repository. It exists until the end of the `with` block."""

    checkout: Checkout
    directory: Path
    environment: Mapping[str, str]
    writing: bool = False
    partial: bool = False
    """True for a partial clone: objects may be missing, and nothing fetches them."""
    has_tree: bool = True
    """False for commands about commits alone: they see no working tree, whose `.gitattributes` may be a pipe."""

    @property
    def apart(self) -> View:
        """The same without the working tree."""
        return replace(self, has_tree=False)

    def git(
        self,
        *words: str,
        check: bool = True,
        stdin: bytes = b"",
        stdout: int | None = None,
        bounds: tuple[str, ...] = _MEMORY,
    ) -> process.Completed:
        """Run git. `bounds` is a program that limits what follows it. Without root there is no choice of the user."""
        opened = (self.checkout.top, self.checkout.git_dir, self.checkout.common)
        return _run(
            [*(bounds if sys.platform == "linux" else ()), "git", *words],
            self.checkout.owner,
            writing=self.writing,
            cwd=find_path(self.checkout.top) if self.has_tree else self.directory / _NO_TREE,
            environment=self.environment,
            check=check,
            stdin=stdin,
            descriptors=process.Descriptors(stdout, opened),
        )

    @contextlib.contextmanager
    def quarantine(self) -> Iterator[View]:
        """The same repository, but new refs and objects are stored in a separate folder."""
        with _private_folder() as directory:
            for name in ("HEAD", "config"):
                (directory / name).write_bytes((self.directory / name).read_bytes())
            for name in ("objects", "objects/info", "objects/pack", "refs", _NO_TREE):
                (directory / name).mkdir()
            (directory / "objects/info/alternates").write_text(f"{find_path(self.checkout.common)}/objects\n")
            if (self.directory / "shallow").is_symlink():
                (directory / "shallow").symlink_to((self.directory / "shallow").readlink())
            _hand_over(directory, self.checkout.owner, self.writing)
            environment = {**self.environment, "GIT_DIR": str(directory)}
            yield replace(self, directory=directory, environment=environment, has_tree=False)


@contextlib.contextmanager
def open_view(top: Place, *, writing: bool = False, shallow: bytes | None = None, head: str = "") -> Iterator[View]:
    """The repository whose working tree is at `top`. UsageError if a part belongs to another, or if its format is
    unknown.

    `writing` is for commands that add refs and objects, which only the owner may do. `shallow`, one commit in a line,
    replaces the boundary of the repository's history. `head`, a commit, stands for HEAD.
    """
    with open_checkout(top) as checkout, _private_folder() as directory:
        found = _read_config(checkout, top)
        if tree := _find_tree(checkout, found, top):
            refuse_other_tree(checkout, find_path(checkout.git_dir) / tree, top)
        (directory / "config").write_text(_make_config(found, top))
        (directory / "HEAD").write_bytes(os.fsencode(head or checkout.head) + b"\n")
        (directory / _NO_TREE).mkdir()
        common = find_path(checkout.common)
        for name in ("objects", "refs", "packed-refs"):
            (directory / name).symlink_to(common / name)
        if shallow is not None:
            (directory / "shallow").write_bytes(shallow)
        elif os.path.lexists(common / "shallow"):
            (directory / "shallow").symlink_to(common / "shallow")
        with os.scandir(checkout.git_dir) as entries:
            for entry in entries:
                if re.fullmatch(r"sharedindex\.[0-9a-f]+", entry.name) and entry.is_file(follow_symlinks=False):
                    (directory / entry.name).symlink_to(find_path(checkout.git_dir) / entry.name)
        _hand_over(directory, checkout.owner, writing)
        environment = {
            **ENVIRONMENT,
            "GIT_DIR": str(directory),
            "GIT_WORK_TREE": ".",
            "GIT_INDEX_FILE": str(find_path(checkout.git_dir) / "index"),
        }
        partial = "extensions.partialclone" in found or any(
            key.startswith("remote.") and key.endswith(".promisor") for key in found
        )
        yield View(checkout, directory, environment, writing, partial)


def find_path(descriptor: int) -> Path:
    """A path of an open folder, for Git: on Linux by descriptor, so that a folder that is replaced meanwhile changes
    nothing."""
    if sys.platform == "linux":
        return Path(f"/proc/self/fd/{descriptor}")
    # macOS. mypy checks for Linux.
    name = fcntl.fcntl(descriptor, getattr(fcntl, "F_GETPATH"), bytes(1024))  # noqa: B009
    return Path(os.fsdecode(name.rstrip(b"\0")))


def read_shallow(view: View) -> bytes:
    """The boundary of a shallow clone, one commit in a line. Empty for a complete history."""
    content = read_own(view.checkout.common, "shallow", 1 << 20, Place(view.checkout.common_path)) or b""
    return b"".join(line for line in content.splitlines(keepends=True) if _SHALLOW.fullmatch(line))


def read_symbolic_ref(view: View, name: str) -> str:
    """The ref that a symbolic ref names; empty if there is none. Git never packs symbolic refs, so that each is a file
    of its own."""
    try:
        with os.fdopen(open_file(Place(find_path(view.checkout.common)), name), "rb") as file:
            text = os.fsdecode(file.read(_MAX_SYMBOLIC))
    except (OSError, KtrdrError):
        return ""
    return text.removeprefix("ref:").strip() if text.startswith("ref:") else ""


def require_commit(word: object, where: str) -> str:
    """The id of a commit from a document. UsageError for anything else, because it becomes an argument of Git."""
    if isinstance(word, str) and COMMIT.fullmatch(word):
        return word
    raise UsageError(
        f"{word!a:.100} is not the id of a commit",
        where=where,
        hint="the documents of a run name commits by their full id",
    )


def require_ref(word: object, where: str) -> str:
    """The full name of a ref from a document, or UsageError."""
    if isinstance(word, str) and REF.fullmatch(word) and ".." not in word and not word.endswith((".lock", ".")):
        return word
    raise UsageError(f"{word!a:.100} is not a ref", where=where, hint="the documents of a run name refs beneath refs/")


def _find_tree(checkout: Checkout, found: Mapping[str, str], top: Place) -> str:
    """`core.worktree`, from the folder of HEAD. A linked working tree has the one of its `config.worktree`, as in
    Git."""
    tree = "" if checkout.git_dir != checkout.common else found.get("core.worktree", "")
    if found.get("extensions.worktreeconfig", "false").lower() != "false":
        tree = _read_config(checkout, top, checkout.git_dir, "config.worktree").get("core.worktree", tree)
    return tree


def _read_config(checkout: Checkout, top: Place, folder: int = -1, name: str = "config") -> dict[str, str]:
    """The configuration of the repository, parsed as text without includes. Keys are in lower case."""
    raw = read_own(checkout.common if folder < 0 else folder, name, _MAX_CONFIG, top) or b""
    listed = _list_settings(raw, checkout.owner)
    if listed.exit_code != 0:
        _list_settings.cache_clear()
        raise UsageError(
            f"the repository's configuration cannot be read: {keep_end(listed.error_text, 200)}",
            where=str(top.path),
            hint="check it with `git config --list`",
        )
    found: dict[str, str] = {}
    for entry in os.fsdecode(listed.stdout).split("\0"):
        key, _, value = entry.partition("\n")
        found[key.lower()] = value
    return found


@functools.lru_cache(maxsize=8)
def _list_settings(raw: bytes, owner: tuple[int, int]) -> process.Completed:
    # Remembered, because a command opens the same repository several times.
    return _run(
        ["git", "config", "--file", "-", "--no-includes", "--null", "--list"],
        owner,
        cwd=Path("/"),
        environment={**ENVIRONMENT, "GIT_DIR": "/nonexistent"},
        stdin=raw,
        check=False,
    )


def _make_config(found: Mapping[str, str], top: Place) -> str:
    """Our configuration, with the format settings of the repository."""
    if found.get("extensions.refstorage", "files") != "files":
        raise UsageError(
            "the repository stores its refs as a reftable, which is not supported",
            where=str(top.path),
            hint="run `git refs migrate --ref-format=files`",
        )
    unknown = sorted(
        key for key in found if key.startswith("extensions.") and key not in _HARMLESS and key not in _KEPT
    )
    if unknown:
        raise UsageError(
            f"the format of the repository is not supported: {unknown[0]}",
            where=str(top.path),
            hint="clone it without that extension",
        )
    kept = {
        key: found[key].lower() for key, pattern in _KEPT.items() if re.fullmatch(pattern, found.get(key, "").lower())
    }
    text = _CONFIG.format(version=1 if "extensions.objectformat" in kept else 0)
    for key, value in kept.items():
        section, _, name = key.partition(".")
        text += f"[{section}]\n\t{name} = {value}\n"
    return text


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Owned by root until it is complete: `_hand_over` is the last step."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-git-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _hand_over(directory: Path, owner: tuple[int, int], writing: bool) -> None:
    """Give the folder to the user as which Git runs, because Git writes its locks there."""
    if os.geteuid() != 0:
        return
    user, group = (_NOBODY, _NOBODY) if owner[0] == 0 and not writing else owner
    for path in (*directory.rglob("*"), directory):
        os.chown(path, user, group, follow_symlinks=False)


def _run(
    words: list[str],
    owner: tuple[int, int],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    check: bool,
    stdin: bytes = b"",
    descriptors: process.Descriptors = process.PIPED,
    writing: bool = False,
) -> process.Completed:
    if os.geteuid() == 0 and owner[0] == 0 and not writing and sys.platform == "linux":
        words = [*_READER, *words]
    return process.run(
        words,
        cwd=cwd,
        timeout=LIMIT,
        environment=environment,
        check=check,
        owner=owner,
        stdin=stdin,
        descriptors=descriptors,
    )
