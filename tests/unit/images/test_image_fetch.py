"""A fetched image is used only with the right checksum, and only when it stands alone. Only file URLs are opened here."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.images import fetch
from ktrdr_vm.images.store import ImageStore

CONTENT = b"a whole disk" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file URL; what qemu-img would say about it is given, since a unit test starts no process."""
    place = tmp_path / "disk.img"
    place.write_bytes(CONTENT)
    monkeypatch.setattr(fetch, "_probe", lambda download, url: ("qcow2", 4096))
    return place.as_uri()


def fetch_to(store: ImageStore, url: str, sha256: str = SHA256) -> Any:
    return fetch.fetch_image(url, sha256, store, progress=lambda message: None)


def test_the_right_image_is_kept_and_fetched_once(tmp_path: Path, source: str) -> None:
    store = ImageStore(tmp_path / "images")
    image = fetch_to(store, source)
    assert image.disk.read_bytes() == CONTENT
    assert (image.boot, image.disk_format, image.kernel, image.digest) == ("disk", "qcow2", None, SHA256)
    (tmp_path / "disk.img").unlink()
    assert fetch_to(store, source) == image


def test_a_wrong_checksum_leaves_nothing_to_use(tmp_path: Path, source: str) -> None:
    store = ImageStore(tmp_path / "images")
    wrong = "0" * 64
    with pytest.raises(ProvisionError, match="not used") as caught:
        fetch_to(store, source, wrong)
    assert SHA256 not in caught.value.message  # a profile must not learn what root can read
    assert store.find(wrong) is None
    assert not any(place.is_dir() for place in store.root.iterdir())


def test_what_is_not_there_is_an_error_with_its_address(tmp_path: Path, source: str) -> None:
    with pytest.raises(KtrdrError, match="none"):
        fetch_to(ImageStore(tmp_path / "images"), (tmp_path / "none").as_uri())


@pytest.mark.parametrize(
    ("url", "sha256"), [("ftp://a.example/x", SHA256), ("/etc/passwd", SHA256), ("file:///x", "abc"), ("file:///x", SHA256.upper())]
)
def test_what_cannot_be_asked_for_is_refused_first(tmp_path: Path, url: str, sha256: str) -> None:
    with pytest.raises(UsageError):
        fetch_to(ImageStore(tmp_path / "images"), url, sha256)
    assert not (tmp_path / "images").exists()


def describe(**changes: Any) -> str:
    return json.dumps({"format": "qcow2", "virtual-size": 1 << 30, "format-specific": {"data": {}}, **changes})


def test_a_complete_image_is_taken_as_what_it_is() -> None:
    assert fetch.read_image_info(describe(), "x") == ("qcow2", 1 << 30)
    assert fetch.read_image_info(describe(format="raw"), "x") == ("raw", 1 << 30)


@pytest.mark.parametrize(
    "changes",
    [
        {"backing-filename": "/etc/shadow"},
        {"full-backing-filename": "/etc/shadow"},
        {"format-specific": {"data": {"data-file": "/etc/shadow"}}},
        {"format": "vmdk"},
        {"virtual-size": 1 << 60},
        {"virtual-size": 0},
    ],
)
def test_an_image_that_leads_elsewhere_or_is_not_plausible_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProvisionError):
        fetch.read_image_info(describe(**changes), "x")
