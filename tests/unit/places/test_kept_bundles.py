"""Bundles that a spool keeps for later requests: checked once, named by their digest, and never written again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.places.far_end import FarEnd
from ktrdr_vm.places.history import MOST_TIPS, read_tips
from ktrdr_vm.places.request import BASE, BUNDLE, DOCUMENT, Request, SentFile, make_request_id
from ktrdr_vm.places.spool import Spool

Make = Callable[..., Request]
Write = Callable[[Request], Path]
ONE, TWO = "1" * 40, "2" * 40
CONTENT = f"# v2 git bundle\n{ONE} refs/heads/main\n{TWO} refs/tags/v1\n{ONE} HEAD\n\nPACK".encode()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "tips"),
    [
        (CONTENT, (ONE, TWO)),
        (b"# v3 git bundle\n@object-format=sha1\n" + CONTENT.partition(b"\n")[2], (ONE, TWO)),
        (b"# v2 git bundle\n-" + ONE.encode() + b" subject\n" + CONTENT.partition(b"\n")[2], ()),
        (b"", ()),
        (b"# v2 git bundle", ()),
        (b"# v2 git bundle\n", ()),
        (b"# v2 git bundle\nx\n", ()),
        (b"# v9 git bundle\n" + CONTENT.partition(b"\n")[2], ()),
        (b"# v2 git bundle\n" + b"x" * 10**6, ()),
    ],
    ids=range(9),
)
def test_tips_of_a_bundle(content: bytes, tips: tuple[str, ...]) -> None:
    assert read_tips(io.BytesIO(content)) == tips


def test_tips_are_bounded() -> None:
    lines = b"".join(b"%040x refs/tags/%d\n" % (number, number) for number in range(100_000))
    assert len(read_tips(io.BytesIO(b"# v2 git bundle\n" + lines + b"\n"))) == MOST_TIPS


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def pack(make_request: Make, write_request: Write) -> Callable[..., tuple[Request, Path]]:
    def pack(name: str = BUNDLE, content: bytes = CONTENT, *, shallow: str = "") -> tuple[Request, Path]:
        sent = SentFile(name, len(content), digest(content))
        plain = make_request()
        request = make_request(commit=ONE, files=(*plain.files, sent), shallow=shallow)
        folder = write_request(request)
        (folder / name).write_bytes(content)
        return request, folder

    return pack


def put_all(spool: Spool, request: Request, folder: Path, *, without: str = "") -> None:
    for one in request.files:
        if one.name != without:
            spool.put(request.request_id, one.name, 0, (folder / one.name).read_bytes())
    spool.put(request.request_id, DOCUMENT, 0, (folder / DOCUMENT).read_bytes())


def test_a_bundle_is_received_once(spool: Spool, pack: Callable[..., tuple[Request, Path]]) -> None:
    first, folder = pack()
    spool.begin(first.request_id, {BUNDLE: digest(CONTENT)})
    put_all(spool, first, folder)
    spool.commit(first.request_id)
    [offer] = spool.bundles.list_offers()
    assert (offer.size, offer.sha256, offer.tips) == (len(CONTENT), digest(CONTENT), (ONE, TWO))
    second, folder = pack(BASE)
    assert spool.begin(second.request_id, {BASE: digest(CONTENT)}) == {BASE: len(CONTENT)}
    put_all(spool, second, folder, without=BASE)
    # A client that appends to it changes nothing that others have.
    assert spool.put(second.request_id, BASE, len(CONTENT), b"more") == len(CONTENT)
    spool.commit(second.request_id)
    paths = [spool.request(first.request_id) / BUNDLE, spool.request(second.request_id) / BASE]
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert os.path.samefile(*paths)


def test_one_that_is_gone_or_is_another_is_refused(spool: Spool, pack: Callable[..., tuple[Request, Path]]) -> None:
    request, folder = pack(BASE)
    assert spool.begin(request.request_id, {BASE: digest(CONTENT), "../x": digest(CONTENT), BUNDLE: "../../x"}) == {}
    put_all(spool, request, folder, without=BASE)
    with pytest.raises(UsageError, match="did not arrive"):
        spool.commit(request.request_id)
    # What is sent under the digest of another is neither taken nor kept.
    spool.put(request.request_id, BASE, 0, b"# v2 git bundle\n")
    with pytest.raises(UsageError, match="did not arrive"):
        spool.commit(request.request_id)
    assert spool.bundles.list_offers() == []


def test_nothing_builds_on_a_shallow_history(spool: Spool, pack: Callable[..., tuple[Request, Path]]) -> None:
    request, folder = pack(shallow=TWO + "\n")
    spool.begin(request.request_id)
    put_all(spool, request, folder)
    spool.commit(request.request_id)
    assert spool.bundles.list_offers() == []
    assert spool.begin(make_request_id(), {BUNDLE: digest(CONTENT)}) == {BUNDLE: len(CONTENT)}, "and it is shared"


def test_nothing_builds_on_a_part(spool: Spool, pack: Callable[..., tuple[Request, Path]], make_request: Make) -> None:
    """Also where its header names no commit that it builds on, as with a new tag alone."""
    request, folder = pack()
    spool.begin(request.request_id)
    put_all(spool, request, folder)
    spool.commit(request.request_id)
    thin = CONTENT + b"of a tag"
    files = (*request.files, SentFile(BUNDLE, len(thin), digest(thin)))
    files = (files[0], SentFile(BASE, len(CONTENT), digest(CONTENT)), files[2])
    second = make_request(commit=ONE, files=files)
    (folder / BUNDLE).write_bytes(thin)
    (folder / DOCUMENT).write_text(json.dumps(second.to_json()))
    spool.begin(second.request_id, {BASE: digest(CONTENT)})
    put_all(spool, second, folder, without=BASE)
    spool.commit(second.request_id)
    assert [one.sha256 for one in spool.bundles.list_offers()] == [digest(CONTENT)]


def test_bundles_without_requests_are_removed(spool: Spool, pack: Callable[..., tuple[Request, Path]]) -> None:
    request, folder = pack()
    spool.begin(request.request_id)
    put_all(spool, request, folder)
    spool.commit(request.request_id)
    (spool.request(request.request_id) / BUNDLE).unlink()
    other, folder = pack(content=CONTENT + b"x")
    spool.begin(other.request_id)
    put_all(spool, other, folder)
    spool.commit(other.request_id)
    assert [one.size for one in spool.bundles.list_offers()] == [len(CONTENT) + 1]


def test_small_requests_are_sent_together(pack: Callable[..., tuple[Request, Path]]) -> None:
    calls: list[str] = []
    together: list[int] = []

    def call(operation: str, **words: Any) -> dict[str, Any]:
        calls.append(operation)
        if operation == "receive":
            assert not any(BUNDLE in one["files"] for one in words["requests"])
            together.append(len(words["requests"]))
        if operation == "put":
            return {"size": words["offset"] + len(base64.b64decode(words["data"]))}
        return {"have": {}}

    folders = [pack()[1] for _ in range(120)]
    sent: list[str] = []
    FarEnd(call, "far").send(folders, sent.append)
    assert together == [50, 50, 19] and len(set(sent)) == 120
    assert [one for one in calls if one != "put"] == ["begin", "commit", "receive", "receive", "receive"]
