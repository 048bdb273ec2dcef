"""A request in a folder, without Git."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.places.request import DOCUMENT, Request, SentFile, make_request_id

PROFILE = b"version: 1\nname: p\nimage: debian-13-docker\n"


@pytest.fixture
def make_request() -> Callable[..., Request]:
    def make(**changes: Any) -> Request:
        sent = SentFile("files/ktrdr.yaml", len(PROFILE), hashlib.sha256(PROFILE).hexdigest())
        words: dict[str, Any] = {
            "request_id": make_request_id(), "instance_id": "demo", "who": "a@b", "place": "far", "created_at": "2026-01-01T00:00:00Z",
            "profile": "ktrdr.yaml", "in_workspace": True, "digest": "0" * 64, "files": (sent,),
        }  # fmt: skip
        return Request(**{**words, **changes})

    return make


@pytest.fixture
def write_request(tmp_path: Path) -> Callable[[Request], Path]:
    def write(request: Request) -> Path:
        folder = tmp_path / "packed" / request.request_id
        (folder / "files").mkdir(parents=True)
        (folder / "files/ktrdr.yaml").write_bytes(PROFILE)
        (folder / DOCUMENT).write_text(json.dumps(request.to_json()))
        return folder

    return write
