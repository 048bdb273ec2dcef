"""A request that was read is one that was written; everything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.places.request import Request, parse_request

Make = Callable[..., Request]


def test_there_and_back(make_request: Make) -> None:
    request = make_request(
        gates=("unit",), refs=("a" * 40 + " refs/tags/v1",), branch="feature/x", secrets=("key",), deleted=("a b",)
    )
    content = json.dumps(request.to_json()).encode()
    assert parse_request(content, "x") == request
    assert b"value" not in content


BAD: list[tuple[str, Any]] = [
    ("schema_version", 2),
    ("request_id", "../x"),
    ("instance_id", "A/B"),
    ("profile", "../../etc/passwd"),
    ("profile", "other.yaml"),
    ("branch", "-x"),
    ("branch", "a..b"),
    ("branch", "a b"),
    ("branch", "x.lock"),
    ("commit", "HEAD"),
    ("commit", "a" * 40),
    ("shallow", "x\n"),
    ("node", "n1\n#SBATCH --uid=0"),
    ("node", "-x"),
    ("sent_secrets", ["key"]),
    ("refs", ["a" * 40]),
    ("refs", ["HEAD refs/heads/main"]),
    ("refs", ["a" * 40 + " HEAD"]),
    ("refs", ["a" * 40 + " refs/heads/x\ndelete refs/heads/main"]),
    ("refs", ["a" * 40 + " refs/../x"]),
    ("refs", ["a" * 40 + " refs/heads/main"] * 3000),
    ("gates", ["/etc/passwd"]),
    ("gates", ["../x"]),
    ("gates", [1]),
    ("deleted", ["../x"]),
    ("deleted", [".git/config"]),
    ("vcpus", 0),
    ("vcpus", "2"),
    ("cold", 1),
    ("seconds", 10**9),
    ("who", "a\nb"),
    ("digest", ""),
    ("files", []),
    ("files", [{"name": "../x", "size": 1, "sha256": "0" * 64}]),
    ("files", [{"name": "files/.git/hooks/x", "size": 1, "sha256": "0" * 64}]),
    ("files", [{"name": "other", "size": 1, "sha256": "0" * 64}]),
    ("files", ["x"]),
    ("unknown", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_fields_are_checked(field: str, value: object, make_request: Make) -> None:
    data = make_request().to_json()
    data[field] = value
    with pytest.raises(UsageError, match="not a valid request"):
        parse_request(json.dumps(data).encode(), "x")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{}"])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(UsageError):
        parse_request(content, "x")
