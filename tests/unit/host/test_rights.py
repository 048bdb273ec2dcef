"""The table of who may open what, and what differs from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktrdr_vm.host.rights import TABLE, find_open, find_right, make_private, set_rights


def make(home: Path, name: str, mode: int) -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in (home, *(one for one in path.relative_to(home).parents if str(one) != ".")):
        (home / folder).chmod(find_right(home / folder, home).mode & 0o700)
    path.write_text("x")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "instances/one/guard/proxy.cfg", "instances/one/guard/tls.granted_suffixes", "instances/one/guard/given.addresses",
        "instances/one/journal.json", "instances/one/overlay.qcow2", "instances/one/ssh/host_key", "instances/one/egress.jsonl",
        "templates/k/disk.qcow2", "templates/k/project.qcow2", "templates/k/manifest.json", "templates/k/egress.jsonl", "digests/one/r.json",
        "something/new",
    ],
)  # fmt: skip
def test_what_is_wider_than_the_table_is_named(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = make(home, name, 0o644)
    assert find_open(home) == [f"{path}: 0644"]
    set_rights(path, home, group=os.getegid())
    assert find_open(home) == [] and not path.stat().st_mode & 0o007


def test_others_read_images_kernels_and_a_public_key_only() -> None:
    """SECURITY.md names them. A folder may be entered, which shows no names in it."""
    assert {right.pattern for right in TABLE if right.mode & 0o004} - {"instances/*/mounts/*"} == {
        "images/*",
        "instances/*/vmlinuz",
        "instances/*/initrd",
        "attestation-key.pub",
    }


def test_nobody_else_writes_anything_by_the_table() -> None:
    assert [right for right in TABLE if right.mode & 0o022 and right.pattern != "instances/*/mounts/*"] == []


def test_the_folder_above_the_binds_is_closed_and_not_entered(tmp_path: Path) -> None:
    home = tmp_path
    home.chmod(0o711)
    bound = home / "instances/one/mounts/0"
    bound.mkdir(parents=True)
    for folder in (home / "instances", home / "instances/one"):
        folder.chmod(0o711)
    bound.chmod(0o777)
    (home / "instances/one/mounts").chmod(0o755)
    assert find_open(home) == [f"{home}/instances/one/mounts: 0755"]
    set_rights(home / "instances/one/mounts", home)
    assert find_open(home) == []


def test_private_folders_are_private_whatever_the_umask_and_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        make_private(tmp_path / "old", tmp_path / "old" / "new", tmp_path / "old" / "new" / "in")
    finally:
        os.umask(before)
    assert [(tmp_path / one).stat().st_mode & 0o777 for one in ("old", "old/new", "old/new/in")] == [0o700] * 3
