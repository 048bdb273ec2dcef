"""A fetched image is used only with the right checksum, and only when it stands alone. Only file URLs are opened
here."""

import contextlib
import hashlib
import struct
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.errors import KtrdrError, ProvisionError, UsageError
from ktrdr_vm.images import fetch
from ktrdr_vm.images.header import parse_format
from ktrdr_vm.images.store import ImageStore

CONTENT = b"a whole disk" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion itself is qemu-img's, and is tested with it in the lab."""
    monkeypatch.setattr(
        fetch, "convert_raw", lambda source, target: target.write_bytes(b"qcow2 of " + source.read_bytes())
    )


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file URL of a raw disk."""
    place = tmp_path / "disk.img"
    place.write_bytes(CONTENT)
    return place.as_uri()


def fetch_to(store: ImageStore, url: str, sha256: str = SHA256) -> Any:
    return fetch.fetch_image(url, sha256, store, progress=lambda message: None)


def test_the_right_image_is_kept_and_fetched_once(tmp_path: Path, source: str) -> None:
    store = ImageStore(tmp_path / "images")
    image = fetch_to(store, source)
    assert image.disk.read_bytes() == b"qcow2 of " + CONTENT
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


def test_a_source_without_an_end_is_cut(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size that no image has; else it fills the disk up to what is reserved for the host."""
    store = ImageStore(tmp_path / "images")
    monkeypatch.setattr(fetch, "_MAX_BYTES", 10)
    with pytest.raises(ProvisionError, match="is larger than"):
        fetch_to(store, source)
    assert not any(place.is_dir() for place in store.root.iterdir())


def test_what_is_not_there_is_an_error_with_its_address(tmp_path: Path, source: str) -> None:
    with pytest.raises(KtrdrError, match="none"):
        fetch_to(ImageStore(tmp_path / "images"), (tmp_path / "none").as_uri())


@pytest.mark.parametrize(
    ("url", "sha256"),
    [("ftp://a.example/x", SHA256), ("/etc/passwd", SHA256), ("file:///x", "abc"), ("file:///x", SHA256.upper())],
)
def test_what_cannot_be_asked_for_is_refused_first(tmp_path: Path, url: str, sha256: str) -> None:
    with pytest.raises(UsageError):
        fetch_to(ImageStore(tmp_path / "images"), url, sha256)
    assert not (tmp_path / "images").exists()


def qcow2(*, version: int = 3, backing: int = 0, length: int = 0, size: int = 1 << 30, features: int = 0) -> bytes:
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", version, backing, length, 16, size)
    return head.ljust(72, b"\0") + struct.pack(">Q", features) + bytes(432)


def test_a_complete_image_is_taken_as_what_it_is() -> None:
    assert parse_format(qcow2(), 512, "x") == ("qcow2", 1 << 30)
    assert parse_format(qcow2(version=2), 512, "x") == ("qcow2", 1 << 30)
    assert parse_format(b"\xeb\x63\x90".ljust(512, b"\0"), 1 << 30, "x") == ("raw", 1 << 30)


@pytest.mark.parametrize(
    "head",
    [
        qcow2(backing=104), qcow2(length=11), qcow2(features=0b100), qcow2(features=0b10), qcow2(features=1 << 40), qcow2(version=1),
        qcow2(size=0), qcow2(size=1 << 60), qcow2()[:80], b"KDMV", b"# Disk DescriptorFile\n", b"vhdxfile", b"QED\0", b"<<< Oracle", b"\x1f\x8b",
    ],
)  # fmt: skip
def test_an_image_that_leads_elsewhere_or_is_not_plausible_is_refused(head: bytes) -> None:
    with pytest.raises(ProvisionError):
        parse_format(head, 1 << 20, "x")


@given(st.binary(max_size=512).map(lambda rest: b"QFI\xfb" + rest) | st.binary(max_size=512), st.integers(0, 1 << 62))
def test_any_head_is_a_format_or_an_error(head: bytes, length: int) -> None:
    with contextlib.suppress(ProvisionError):
        disk_format, size = parse_format(head, length, "x")
        assert disk_format in ("raw", "qcow2") and 0 < size <= 1 << 40
        assert disk_format == "qcow2" or not head.startswith(b"QFI")


# -- where a server refers to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "sources", "to", "allowed"),
    [
        ("https", ("https://a.example/",), "https://a.example/other", True), ("https", ("https://a.example/",), "https://b.example/x", False),
        ("https", ("https://",), "https://b.example/x", True), ("https", ("https://", "http://"), "http://b.example/x", False),
        ("http", ("http://a.example/",), "https://a.example/x", False), ("http", ("http://", "https://"), "https://a.example/x", True),
        ("http", ("http://",), "http://169.254.169.254/latest", True), ("http", ("http://a.example/",), "http://169.254.169.254/latest", False),
        ("https", None, "http://a.example/x", False), ("https", None, "https://b.example/x", True), ("https", None, "ftp://b.example/x", False),
        ("https", None, "file:///etc/shadow", False), ("http", ("http://", "file://"), "file:///etc/shadow", False),
    ],
)  # fmt: skip
def test_each_hop_is_judged(scheme: str, sources: tuple[str, ...] | None, to: str, allowed: bool) -> None:
    judge = fetch._Judge(scheme, sources)
    request = urllib.request.Request(f"{scheme}://a.example/image")
    if allowed:
        assert judge.redirect_request(request, None, 302, "", {}, to).full_url == to
    else:
        downgraded = to.partition(":")[0] not in {scheme, "https"}
        reason = f"redirects from {scheme} to an address" if downgraded else "not a source of the owner's policy"
        with pytest.raises(ProvisionError, match=reason) as caught:
            judge.redirect_request(request, None, 302, "", {}, to)
        assert to not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "others"), [("https://a.example/x", "http"), ("http://a.example/x", "file"), ("file:///x", "http")]
)
def test_what_opens_one_scheme_opens_no_other(url: str, others: str) -> None:
    opener: Any = fetch._make_opener(url, None)
    assert others not in opener.handle_open and "ftp" not in opener.handle_open
