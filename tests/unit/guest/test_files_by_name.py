"""What enters or leaves the host by a file's name: repositories in mounts, half secrets, local files as images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktrdr_vm.errors import DocumentError, HostError, ProvisionError
from ktrdr_vm.host.beneath import remove_file
from ktrdr_vm.images.fetch import fetch_image
from ktrdr_vm.images.store import ImageStore
from ktrdr_vm.instance.resources.mount import _refuse_repositories
from ktrdr_vm.instance.secret_sources import MAX_BYTES, read_source
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.model import Secret


@pytest.mark.parametrize("git", [".git/config", "sub/deep/.git"], ids=["the workspace itself", "a submodule"])
def test_a_folder_with_a_repository_in_it_is_not_mounted(tmp_path: Path, git: str) -> None:
    place = tmp_path / git
    if git.startswith("sub"):
        place.parent.mkdir(parents=True)
    descriptor = os.open(tmp_path, os.O_PATH)
    _refuse_repositories(descriptor, "data")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    with pytest.raises(HostError, match=r"\.git is never mounted"):
        _refuse_repositories(descriptor, "data")
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, MAX_BYTES + 1])
def test_half_a_secret_is_never_delivered(tmp_path: Path, size: int) -> None:
    (tmp_path / "key").write_bytes(b"x" * size)
    with pytest.raises(HostError, match=r"empty|larger"):
        read_source(Secret("key", "/run/secrets/key", file=str(tmp_path / "key")))


def test_a_variable_that_no_guest_is_given_is_refused_before_anything_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_KEY", "x" * (MAX_BYTES + 1))
    with pytest.raises(HostError, match="larger than 64 KiB"):
        read_source(Secret("key", "/run/secrets/key", env="KTRDR_KEY"))


def test_the_digest_of_a_local_file_is_not_told(tmp_path: Path) -> None:
    """A profile could name /etc/shadow and read its digest from the report."""
    (tmp_path / "shadow").write_text("x")
    with pytest.raises(ProvisionError, match="does not have the sha256") as caught:
        fetch_image(f"file://{tmp_path}/shadow", "0" * 64, ImageStore(tmp_path / "store"), progress=print)
    assert "2d711642" not in str(caught.value)


def test_a_device_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="regular file"):
        fetch_image("file:///dev/zero", "0" * 64, ImageStore(tmp_path / "store"), progress=print)


def test_an_address_with_control_characters_is_refused() -> None:
    text = 'version: 1\nname: n\nimage: {url: "https://x/\\e[2J", sha256: "' + "0" * 64 + '"}\n'
    with pytest.raises(DocumentError, match="does not match"):
        load_profile(text, "p.yaml", lambda *_: ("", b""))


def test_what_is_taken_away_again_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to("../outside")
    remove_file(tmp_path / "root", "link/file")
    assert (tmp_path / "outside/file").exists()
