"""An image is there completely or not at all, and only under the digest that it was asked for with."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.images.store import Image, ImageStore

DIGEST = "a" * 64


def describe(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "digest": DIGEST,
        "content_digest": "b" * 64,
        "disk_format": "raw",
        "boot": "direct",
        "kernel_args": "root=/dev/vda",
        "user": "ktrdr",
        "virtual_size": 4096,
        "manifest": {"packages": {"git": "1"}},
        **changes,
    }


def put(store: ImageStore, **changes: Any) -> Image:
    with store.lock(DIGEST), store.create(DIGEST) as directory:
        for name in ("disk.raw", "vmlinuz", "initrd"):
            (directory / name).write_bytes(b"x")
        return store.commit(directory, describe(**changes))


def test_a_finished_image_is_found_and_listed(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    assert store.find(DIGEST) is None
    assert store.list() == ()
    image = put(store)
    assert store.find(DIGEST) == image
    assert store.list() == (image,)
    assert (image.disk.name, image.disk_format, image.boot) == ("disk.raw", "raw", "direct")
    assert image.kernel is not None
    assert image.kernel.read_bytes() == b"x"
    assert image.manifest["packages"] == {"git": "1"}


def test_qemus_user_can_read_it_and_nobody_can_write_it(tmp_path: Path) -> None:
    image = put(ImageStore(tmp_path / "images"))
    assert image.disk.stat().st_mode & 0o777 == 0o444
    assert image.directory.stat().st_mode & 0o777 == 0o711
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o711


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    with pytest.raises(KeyboardInterrupt), store.create(DIGEST) as directory:
        (directory / "disk.raw").write_bytes(b"half")
        raise KeyboardInterrupt
    assert store.find(DIGEST) is None
    assert list(store.root.iterdir()) == []


def test_what_a_killed_build_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    store.create_root()
    stale = store.root / f".new-{DIGEST}-killed"
    stale.mkdir()
    (stale / "disk.raw").write_bytes(b"half")
    with store.create(DIGEST) as directory:
        assert not stale.exists()
        assert directory.exists()


@pytest.mark.parametrize(
    "changes",
    [{"digest": "c" * 64}, {"boot": "tape"}, {"disk_format": "../../etc/shadow"}, {"manifest": None, "name": None}],
)
def test_a_manifest_that_does_not_fit_is_not_an_image(tmp_path: Path, changes: dict[str, Any]) -> None:
    store = ImageStore(tmp_path / "images")
    image = put(store)
    manifest = image.directory / "manifest.json"
    manifest.chmod(0o644)
    described = {"manifest_version": 1, **describe(**changes)}
    if changes.get("manifest", True) is None:
        del described["manifest"]
    import json

    manifest.write_text(json.dumps(described))
    assert store.find(DIGEST) is None
    assert put(store) == store.find(DIGEST)


@pytest.mark.parametrize("missing", ["disk.raw", "vmlinuz", "initrd", "manifest.json"])
def test_an_image_without_one_of_its_files_is_absent(tmp_path: Path, missing: str) -> None:
    store = ImageStore(tmp_path / "images")
    (put(store).directory / missing).unlink()
    assert store.find(DIGEST) is None


def test_removing_says_whether_there_was_one(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    image = put(store)
    assert store.remove(DIGEST)
    assert not image.directory.exists()
    assert not store.remove(DIGEST)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A" * 64, "a" * 63])
def test_only_a_digest_names_a_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        ImageStore(tmp_path).find(name)


def test_the_second_builder_waits_and_finds_what_the_first_made(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    seen: list[Image | None] = []
    started = threading.Event()

    def second() -> None:
        started.set()
        with store.lock(DIGEST):
            seen.append(store.find(DIGEST))

    thread = threading.Thread(target=second)
    with store.lock(DIGEST):
        thread.start()
        assert started.wait(5)
        assert seen == []
        with store.create(DIGEST) as directory:
            for name in ("disk.raw", "vmlinuz", "initrd"):
                (directory / name).write_bytes(b"x")
            image = store.commit(directory, describe())
    thread.join(5)
    assert seen == [image]
