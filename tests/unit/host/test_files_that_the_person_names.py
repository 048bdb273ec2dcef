"""A file that the person names is written as that person: root follows none of their links."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrdr_vm.cli import verify
from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.owner import write_as_owner

PERSON = 12345

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root writes as another user")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the person in a folder of root that others may enter."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-unit-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("SUDO_UID", str(PERSON))
        monkeypatch.setenv("SUDO_GID", str(PERSON))
        own = Path(name, "own")
        own.mkdir()
        os.chown(own, PERSON, PERSON)
        yield own


def test_it_belongs_to_the_person(folder: Path) -> None:
    write_as_owner(folder / "new/file", b"x")
    assert {path.stat().st_uid for path in (folder / "new", folder / "new/file")} == {PERSON}
    assert os.stat("/").st_uid == 0 and os.access(folder, os.W_OK)


@pytest.mark.parametrize("command", ["render", "runs", "verify"])
def test_a_link_to_a_place_of_root_is_not_followed(folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder.parent / "of-root"
    name = "domain.xml" if command == "render" else "file"
    (folder / name).symlink_to(target)
    profile = folder / "p.yaml"
    profile.write_text("{version: 1, name: t, image: debian-13-docker}\n")
    monkeypatch.setenv("KTRDR_VM_HOME", str(folder.parent / "home"))
    words = {
        "render": ["render", str(profile), "--out", str(folder), "--instance-id", "one"],
        "runs": ["runs", "--html", str(folder / name)],
    }
    with pytest.raises(UsageError, match="Permission denied"):
        if command == "verify":
            verify._copy(b"x", folder / name)
        else:
            cli.main(words[command], standalone_mode=False)
    assert not target.exists()


def test_comments_are_read_as_the_person(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = folder.parent / "of-root"
    secret.write_text("x")
    secret.chmod(0o600)
    (folder / "comments").symlink_to(secret)
    monkeypatch.setenv("KTRDR_VM_HOME", str(folder.parent / "home"))
    with pytest.raises(UsageError, match="the comments cannot be read: Permission denied"):
        cli.main(["push", "one", "--comments", str(folder / "comments")], standalone_mode=False)


def test_what_init_writes_is_the_persons_to_edit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".git").mkdir()
    (folder / "Makefile").write_text("test:\n")
    monkeypatch.chdir(folder)
    cli.main(["init"], standalone_mode=False)
    written = [folder / "ktrdr.yaml", folder / "playbooks", folder / "playbooks/checks.yaml"]
    assert {path.stat().st_uid for path in written} == {PERSON}
    (folder / "ktrdr.yaml").write_text("mine\n")
    cli.main(["init", "--force"], standalone_mode=False)
    assert (folder / "ktrdr.yaml").stat().st_uid == PERSON
