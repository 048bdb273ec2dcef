"""The folder of a world, at whose place in /tmp another user may have put something first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.world.layout import find_layout


def make_link(path: Path) -> None:
    (path.parent / "mine").mkdir(mode=0o700)
    path.symlink_to(path.parent / "mine")


TAKEN: dict[str, Callable[[Path], object]] = {
    "a file": Path.touch,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a folder of the person": make_link,
    "a folder that others may enter": lambda path: path.mkdir(mode=0o755),
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("below", ["", "ktrdr-vm"])
def test_what_is_no_private_folder_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path], object], below: str
) -> None:
    base = tmp_path / "runtime"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    if below:
        base.mkdir(mode=0o700)
    take(base / below if below else base)
    with pytest.raises(HostError, match="is not a folder of mode 0700 that belongs to you"):
        find_layout(tmp_path / "home")


def test_a_missing_one_is_made_for_the_person_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    made = find_layout(tmp_path / "home")
    assert {one.stat().st_mode & 0o777 for one in (made.folder, *made.folder.parents[:2])} == {0o700}
    assert find_layout(tmp_path / "home") == made != find_layout(tmp_path / "other")


def test_a_relative_one_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another folder, and so another world, for each current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "runtime")
    monkeypatch.setattr("ktrdr_vm.world.layout.os.getuid", lambda: 4711)
    made: list[Path] = []

    def make(self: Path, mode: int = 0, exist_ok: bool = False) -> None:
        made.append(self)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", make)
    with pytest.raises(HostError):
        find_layout(tmp_path / "home")
    assert made == [Path("/tmp/ktrdr-vm-4711")]


def test_one_whose_session_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user" / "1000"))
    with pytest.raises(HostError, match="cannot be created: No such file or directory") as caught:
        find_layout(tmp_path / "home")
    assert caught.value.where == str(tmp_path / "user" / "1000") and "XDG_RUNTIME_DIR" in caught.value.hint
