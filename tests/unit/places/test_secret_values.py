"""Values of secrets that come with a request: named by it, bounded, and in no file, argument or environment."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import DocumentError, UsageError
from ktrdr_vm.host import process
from ktrdr_vm.places import secret_values
from ktrdr_vm.places.engine import DetachedEngine
from ktrdr_vm.places.request import Request, SentFile
from ktrdr_vm.places.secret_values import (
    MAX_VALUES,
    check_sent,
    encode_values,
    open_pipe,
    parse_values,
    read_pipe,
    read_sent,
    require_sources,
)
from ktrdr_vm.places.spool import Spool
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.model import Secret

Make = Callable[..., Request]
VALUE = b"abcdefgh\0\xff-ijkl"
PROFILE = """\
version: 1
name: p
image: debian-13-docker
secrets:
  - name: api
    source: {env: %s}
    broker: {host: api.example.com, header: "X-Key: {{ secret }}", base_url_env: API_URL}
  - {name: plain, source: {env: KTRDR_PLAIN}}
"""


def encode(**values: bytes) -> dict[str, str]:
    return {name: base64.b64encode(value).decode() for name, value in values.items()}


def test_there_and_back(make_request: Make) -> None:
    request = make_request(secrets=("api",), sent_secrets=("api",))
    message = encode_values({request.request_id: {"api": VALUE}})
    values = parse_values(message[request.request_id], request)
    pipe = open_pipe(values)
    assert read_pipe(pipe, request) == {"api": VALUE}
    os.close(pipe)


@pytest.mark.parametrize(
    "content",
    [None, [], "x", {}, {"other": "AA=="}, {**encode(api=b"x"), "other": "AA=="}, {"api": 1}, {"api": "!"}],
    ids=range(8),
)
def test_other_values_are_refused(content: Any, make_request: Make) -> None:
    request = make_request(secrets=("api", "other"), sent_secrets=("api",))
    with pytest.raises(UsageError) as caught:
        parse_values(content, request)
    assert caught.value.hint


def test_values_are_bounded(make_request: Make) -> None:
    large = {f"r{number}": {"api": b"x" * 60_000} for number in range(20)}
    with pytest.raises(UsageError, match="larger than"):
        encode_values(large)
    request = make_request(secrets=("api",), sent_secrets=("api",))
    pipe = open_pipe({"api": b"x" * MAX_VALUES})
    assert len(read_pipe(pipe, request)["api"]) == MAX_VALUES, "all of it is in the pipe before anybody reads"
    os.close(pipe)


def write_profile(tmp_path: Path, make_request: Make, name: str = "KTRDR_API") -> tuple[Request, Path]:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/ktrdr.yaml").write_text(PROFILE % name)
    sent = SentFile("files/ktrdr.yaml", 1, "0" * 64)
    return make_request(files=(sent,), secrets=("api", "plain"), sent_secrets=("api",)), tmp_path


def test_only_the_named_one_is_read(tmp_path: Path, make_request: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_values, "read_policy", OwnerPolicy)
    monkeypatch.setenv("KTRDR_API", "the value")
    request, folder = write_profile(tmp_path, make_request)
    assert read_sent(request, folder) == {"api": b"the value"}
    assert read_sent(make_request(), folder) == {}


def test_the_policy_of_the_client_holds(tmp_path: Path, make_request: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile of the repository names the variable."""
    monkeypatch.setattr(secret_values, "read_policy", OwnerPolicy)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the value")
    request, folder = write_profile(tmp_path, make_request, "AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DocumentError, match="does not allow the variable"):
        read_sent(request, folder)


def test_only_a_brokered_secret_is_sent() -> None:
    loaded = load_profile(PROFILE % "KTRDR_API", "ktrdr.yaml", lambda *_: pytest.fail("it extends none"))
    check_sent(loaded, ["api"])
    for name in ("plain", "nothing"):
        with pytest.raises(UsageError, match="no brokered secret"):
            check_sent(loaded, [name])


def test_the_place_refuses_what_neither_it_nor_the_client_has(make_request: Make) -> None:
    request = make_request(secrets=("api", "plain"), sent_secrets=("api", "plain"))
    brokered = Secret("api", "", env="KTRDR_MISSING", broker=object())  # type: ignore[arg-type]
    require_sources(request, [brokered])
    with pytest.raises(UsageError, match="is not set"):
        require_sources(make_request(), [brokered])
    with pytest.raises(UsageError, match="cannot be sent"):
        require_sources(request, [Secret("plain", "/run/x", env="KTRDR_MISSING")])


def test_the_process_gets_them_on_its_standard_input(
    tmp_path: Path, make_request: Make, write_request: Callable[[Request], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, seen = Spool(tmp_path / "spool"), list[bytes]()
    request = make_request(secrets=("api",), sent_secrets=("api",))
    spool.receive_folder(write_request(request), request.request_id)

    def start(words: list[str], *, streams: process.Streams, environment: dict[str, str], **_: object) -> None:
        assert VALUE.decode("latin-1") not in f"{words}{environment}" and "--values" in words
        assert base64.b64encode(VALUE).decode() not in f"{words}{environment}"
        seen.append(os.read(streams.stdin, 65536))

    monkeypatch.setattr("ktrdr_vm.host.process.start", start)
    for _ in range(2):
        DetachedEngine(["ktrdr-vm"]).start(spool, [request], {request.request_id: {"api": VALUE}})
    assert len(seen) == 1 and base64.b64encode(VALUE) in seen[0]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or base64.b64encode(VALUE) not in path.read_bytes()
