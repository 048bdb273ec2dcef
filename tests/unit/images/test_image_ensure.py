"""A stock image of an earlier version is used as plans name it now, and what stood on it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.images import ensure
from ktrdr_vm.images.ensure import ensure_image
from ktrdr_vm.images.store import ImageStore
from ktrdr_vm.profile.model import ImageRef

SHA256 = "a" * 64


def test_a_raw_image_gets_a_qcow2_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ImageStore(tmp_path)
    with store.create(SHA256) as directory:
        (directory / "disk.raw").write_bytes(b"raw")
        described = {"name": "i", "digest": SHA256, "content_digest": SHA256, "disk_format": "raw", "boot": "disk"}
        more = {"kernel_args": "", "user": "ktrdr", "virtual_size": 3, "manifest": {}}
        store.commit(directory, {**described, **more})
    converted: list[str] = []

    def convert(source: Path, target: Path) -> None:
        converted.append(source.name)
        target.write_bytes(b"qcow2")

    monkeypatch.setattr(ensure, "convert_raw", convert)
    ref = ImageRef(url="https://images.example.com/i", sha256=SHA256)
    for _ in range(2):
        image = ensure_image(ref, None, tmp_path, progress=lambda _: None)
        assert (image.disk_format, image.disk.read_bytes()) == ("qcow2", b"qcow2")
    assert converted == ["disk.raw"] and (image.directory / "disk.raw").read_bytes() == b"raw"
