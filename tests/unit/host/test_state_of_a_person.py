"""Where the state of a person is, whose it is, and with which modes it is created."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktrdr_vm.host import owner, paths
from ktrdr_vm.host.owner import find_owner
from ktrdr_vm.host.paths import Home, find_home
from ktrdr_vm.host.process import find_program


@pytest.mark.parametrize(
    ("euid", "state", "found"),
    [
        (0, "", Path("/var/lib/ktrdr-vm")),
        (0, "state", Path("/var/lib/ktrdr-vm")),
        (1000, "", Path("home/.local/state/ktrdr-vm")),
        (1000, "relative", Path("home/.local/state/ktrdr-vm")),
        (1000, "state", Path("state/ktrdr-vm")),
    ],
)
def test_the_default_is_of_the_host_for_root_and_of_the_person_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, euid: int, state: str, found: Path
) -> None:
    monkeypatch.delenv("KTRDR_VM_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / state) if state == "state" else state)
    monkeypatch.setattr(paths.os, "geteuid", lambda: euid)
    assert find_home().root == tmp_path.resolve() / found


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_whatever_the_umask_is_qemus_user_traverses_what_was_created(tmp_path: Path, mask: int) -> None:
    """A folder of mode 0700 above the state directory would keep every VM from starting."""
    tmp_path.chmod(0o755)
    home = Home(tmp_path / "above" / "over" / "state")
    before = os.umask(mask)
    try:
        home.create()
        home.create()
    finally:
        os.umask(before)
    traversed = (home.root, *home.root.parents[:2], home.images, home.templates, home.instances)
    assert {one.stat().st_mode & 0o777 for one in traversed} == {0o711}
    assert {one.stat().st_mode & 0o777 for one in (home.locks, home.runs)} == {0o700}


def test_folders_that_exist_above_it_keep_their_modes(tmp_path: Path) -> None:
    (tmp_path / "above").mkdir(mode=0o750)
    (tmp_path / "above").chmod(0o750)
    Home(tmp_path / "above" / "state").create()
    assert (tmp_path / "above").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("uid", "gid", "found"),
    [
        ("1000", "1001", (1000, 1001)),
        ("0", "0", (0, 0)),
        ("1000", "", None),
        ("", "1000", None),
        ("\u00b2", "1000", None),
        ("\u0661", "1000", None),
        ("-1", "1000", None),
        ("4294967295", "1000", None),
        ("1" * 5000, "1000", None),
        ("someone", "1000", None),
    ],
)
def test_the_person_behind_sudo_is_who_its_variables_name(
    monkeypatch: pytest.MonkeyPatch, uid: str, gid: str, found: tuple[int, int] | None
) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    monkeypatch.setenv("SUDO_GID", gid)
    monkeypatch.setattr(owner.os, "geteuid", lambda: 0)
    assert find_owner() == (found or (os.getuid(), os.getgid()))
    monkeypatch.setattr(owner.os, "geteuid", lambda: 1000)
    assert find_owner() == (os.getuid(), os.getgid())


def test_programs_of_the_host_are_not_searched_in_the_path_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sudo it belongs to the user."""
    for name in ("nft", "a-program-of-nobody"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("a-program-of-nobody") is None
    assert find_program("nft") != tmp_path / "nft"
