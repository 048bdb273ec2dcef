"""What servers and networks do with a download, without one: the answer of the server is made here."""

from __future__ import annotations

import hashlib
import io
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.images import fetch
from ktrdr_vm.images.store import ImageStore

CONTENT = b"a whole disk" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URL = "https://a.example/disk.img"


class Answer(io.BytesIO):
    """A body with the length that the server stated."""

    def __init__(self, body: bytes, length: str | None) -> None:
        super().__init__(body)
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = length


def fetch_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any) -> tuple[Any, list[str]]:
    """The image that comes of an answer of the server, or of its error, and the lines of progress."""

    class Opener:
        def open(self, _url: str, timeout: float) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    said: list[str] = []
    monkeypatch.setattr(fetch, "_make_opener", lambda *_: Opener())
    monkeypatch.setattr(fetch, "convert_raw", lambda source, target: target.write_bytes(source.read_bytes()))
    return fetch.fetch_image(URL, SHA256, ImageStore(tmp_path / "images"), progress=said.append), said


@pytest.mark.parametrize("length", [None, "abc", "-1", "", "\u0663", str(len(CONTENT))])
def test_a_length_that_is_no_number_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: str | None
) -> None:
    image, _ = fetch_answer(tmp_path, monkeypatch, Answer(CONTENT, length))
    assert image.digest == SHA256 and image.disk.read_bytes() == CONTENT


def test_a_connection_that_ends_early_is_no_changed_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told of a wrong checksum distrusts the publisher; what helps is another try."""
    with pytest.raises(ProvisionError, match=f"ended after 500 of {len(CONTENT)} bytes") as caught:
        fetch_answer(tmp_path, monkeypatch, Answer(CONTENT[:500], str(len(CONTENT))))
    assert "try again" in caught.value.hint and caught.value.where == URL
    assert not any(place.is_dir() for place in (tmp_path / "images").iterdir())


def test_what_urllib_cannot_read_is_an_error_with_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProvisionError, match="cannot be fetched: Invalid IPv6 URL") as caught:
        fetch_answer(tmp_path, monkeypatch, ValueError("Invalid IPv6 URL"))
    assert caught.value.where == URL
