"""The tar of uncommitted files may come from a hostile client: it writes in its folder only."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.places.materialize import remove_files, unpack_files


def make_tar(*entries: tuple[str, bytes, str]) -> io.BytesIO:
    """Name, type and target or content of each."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = kind, 0o755
            if kind == tarfile.REGTYPE:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content.encode()))
            else:
                entry.linkname = content
                archive.addfile(entry)
    sink.seek(0)
    return sink


FILE, LINK = tarfile.REGTYPE, tarfile.SYMTYPE


def test_files_and_links_are_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").write_text("old")
    unpack_files(make_tar(("a/old", FILE, "new"), ("b", LINK, "/etc/passwd"), ("a/b", LINK, "../x")), tmp_path)
    assert (tmp_path / "a/old").read_text() == "new" and (tmp_path / "a/old").stat().st_mode & 0o777 == 0o755
    assert str((tmp_path / "b").readlink()) == "/etc/passwd"
    # A link is replaced, not followed.
    unpack_files(make_tar(("b", FILE, "x")), tmp_path)
    assert (tmp_path / "b").read_text() == "x" and not (tmp_path / "b").is_symlink()


@pytest.mark.parametrize(
    "entries",
    [
        [("../x", FILE, "x")],
        [("a/../../x", FILE, "x")],
        [("/tmp/x", FILE, "x")],
        [(".git/hooks/post-checkout", FILE, "x")],
        [(".GIT/config", FILE, "x")],
        [("a/.git", LINK, "/")],
        [("a", tarfile.LNKTYPE, "/etc/passwd")],
        [("a", tarfile.FIFOTYPE, "")],
        [("a", tarfile.CHRTYPE, "")],
        [("out", LINK, "OUTSIDE"), ("out/x", FILE, "x")],
        [("out", LINK, "OUTSIDE"), ("out/x", LINK, "y")],
    ],
    ids=range(11),
)
def test_everything_else_is_refused(entries: list[tuple[str, bytes, str]], tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    with pytest.raises((KtrdrError, OSError)):
        unpack_files(
            make_tar(*[(name, kind, content.replace("OUTSIDE", str(outside))) for name, kind, content in entries]), root
        )
    assert list(outside.iterdir()) == [] and {path.name for path in tmp_path.iterdir()} == {"root", "outside"}


def test_deleting_follows_no_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "x").write_text("x")
    (root / "out").symlink_to(outside)
    (root / "y").write_text("y")
    remove_files(root, ["out/x", "y", "nothing/at/all"])
    assert (outside / "x").exists() and not (root / "y").exists()
