"""`uri` against a real server on the loopback address: cookies, and what a redirect does to a request. Its code runs
here, as it does in a guest."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ktrdr_vm.gates.modules

SCRIPT = Path(ktrdr_vm.gates.modules.__file__).parent / "guest_side" / "network.py"


class Web(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, str, str, str]] = []

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.seen.append((self.command, self.path, body, self.headers.get("Content-Type", "")))
        code = int(self.path[1:]) if self.path[1:].isdigit() else 200
        self.send_response(code)
        if code != 200:
            self.send_header("Location", "/end")
        if self.path == "/login":
            self.send_header("Set-Cookie", "sid=abc; Path=/; HttpOnly")
            self.send_header("Set-Cookie", "csrf=xyz; Path=/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web() -> Iterator[str]:
    Web.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask(url: str, method: str, follow: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "guest_side"}
    exec(compile(SCRIPT.read_text(), "guest-side", "exec"), scope)
    answer: dict[str, Any] = scope["run"]({
        "action": "uri", "url": url, "method": method, "body": None if method in ("GET", "DELETE") else {"a": 1}, "body_format": "json", "headers": {},
        "status_code": [200], "timeout": 10, "follow_redirects": follow, "validate_certs": True, "return_content": False, "user": None, "password": None,
        "basic": False,
    })  # fmt: skip
    return answer


def test_every_cookie_of_a_login_is_there(web: str) -> None:
    said = ask(f"{web}/login", "POST", "safe")
    assert (said["cookies"], said["cookies_string"]) == ({"sid": "abc", "csrf": "xyz"}, "sid=abc; csrf=xyz")
    assert ask(f"{web}/end", "GET", "safe")["cookies_string"] == ""


@pytest.mark.parametrize(
    ("code", "method", "then"),
    [
        (301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET"), (307, "POST", "POST"), (308, "POST", "POST"),
        (301, "PUT", "PUT"), (302, "PUT", "GET"), (303, "DELETE", "GET"), (307, "PUT", "PUT"), (308, "DELETE", "DELETE"), (307, "GET", "GET"),
    ],
)  # fmt: skip
def test_a_redirect_is_followed_as_ansible_follows_it(web: str, code: int, method: str, then: str) -> None:
    said = ask(f"{web}/{code}", method, "all")
    assert (said["status"], said["url"]) == (200, f"{web}/end"), said
    sent = '{"a": 1}' if method in ("POST", "PUT") else ""
    again = sent if code in (307, 308) else ""
    assert Web.seen == [
        (method, f"/{code}", sent, "application/json" if sent else ""),
        (then, "/end", again, "application/json" if again else ""),
    ]


@pytest.mark.parametrize(("follow", "method"), [("safe", "POST"), ("none", "GET"), ("none", "POST")])
def test_a_redirect_that_is_not_wanted_is_not_followed(web: str, follow: str, method: str) -> None:
    assert ask(f"{web}/307", method, follow)["status"] == 307
    assert len(Web.seen) == 1
