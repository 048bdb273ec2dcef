"""`get_url` against a server on loopback, as the guest runs it."""

from __future__ import annotations

import hashlib
import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.gates.modules.guest_side import download

CONTENT = b"the release\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILES = {"/tool.tar": CONTENT, "/SHA256SUMS": f"{'0' * 64}  other.tar\n{SHA256} *tool.tar\n".encode()}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = FILES.get(self.path)
        if content is None:
            self.send_error(404)
        elif self.headers.get("If-Modified-Since"):
            self.send_response(304)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    # HTTPServer would look up the name of the address.
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()


def get(url: str, dest: Path, **options: Any) -> dict[str, Any]:
    arguments = {
        "url": url, "dest": str(dest), "checksum": "", "force": False, "headers": {}, "url_username": None, "url_password": None,
        "validate_certs": True, "timeout": 10, "mode": None, "owner": None, "group": None, "check": False,
    }  # fmt: skip
    found: dict[str, Any] = download.run(arguments | options)
    return found


def test_a_new_file_is_fetched_and_an_unchanged_one_is_not(server: str, tmp_path: Path) -> None:
    place = tmp_path / "tool.tar"
    first = get(f"{server}/tool.tar", place, mode="0640")
    assert (first["changed"], first["status_code"], first["size"]) == (True, 200, len(CONTENT))
    assert place.read_bytes() == CONTENT and place.stat().st_mode & 0o777 == 0o640
    # As Ansible registers them.
    assert (first["mode"], first["state"], first["uid"]) == ("0640", "file", place.stat().st_uid)
    assert first["md5sum"] == hashlib.md5(CONTENT, usedforsecurity=False).hexdigest() and "path" not in first
    again = get(f"{server}/tool.tar", place)
    assert (again["changed"], again["status_code"]) == (False, 304)
    forced = get(f"{server}/tool.tar", place, force=True)
    assert (forced["changed"], forced["status_code"]) == (False, 200)
    assert [path.name for path in tmp_path.iterdir()] == ["tool.tar"]


def test_a_folder_takes_the_name_of_the_file(server: str, tmp_path: Path) -> None:
    assert get(f"{server}/tool.tar", tmp_path)["dest"] == str(tmp_path / "tool.tar")
    assert (tmp_path / "tool.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("checksum", [f"sha256:{SHA256}", "sha256:{server}/SHA256SUMS"])
def test_a_checksum_that_fits(server: str, tmp_path: Path, checksum: str) -> None:
    place = tmp_path / "tool.tar"
    assert get(f"{server}/tool.tar", place, checksum=checksum.format(server=server))["changed"]
    # What is there already is not asked for again.
    assert not get("http://127.0.0.1:1/tool.tar", place, checksum=f"sha256:{SHA256}")["changed"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checksum": "sha256:" + "0" * 64}, "did not match"),
        ({"checksum": "sha256"}, "<algorithm>:<checksum>"),
        ({"checksum": "md9:00"}, "<algorithm>:<checksum>"),
        ({"url": "{server}/none"}, "Request failed"),
        ({"url": "file:///etc/passwd"}, "only http and https"),
        ({"url": "http://127.0.0.1:1/x"}, "Request failed"),
        ({"dest": "{folder}/none/tool.tar"}, "does not exist"),
    ],
)
def test_what_fails_leaves_the_file_as_it_was(server: str, tmp_path: Path, options: dict[str, str], said: str) -> None:
    place = tmp_path / "tool.tar"
    place.write_bytes(b"before")
    filled = {name: value.format(server=server, folder=tmp_path) for name, value in options.items()}
    ended = get(**{"url": f"{server}/tool.tar", "dest": place, "force": True} | filled)  # type: ignore[arg-type]
    assert ended["failed"] and said in ended["msg"], ended
    assert place.read_bytes() == b"before" and [path.name for path in tmp_path.iterdir()] == ["tool.tar"]


def test_a_dry_run_changes_nothing(server: str, tmp_path: Path) -> None:
    assert get(f"{server}/tool.tar", tmp_path / "tool.tar", check=True)["changed"]
    assert list(tmp_path.iterdir()) == []
