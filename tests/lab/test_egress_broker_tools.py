"""git and pip themselves, with a credential that they never have; and every byte on the guest's wire looked through."""

from __future__ import annotations

import base64
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.lab import Lab
from laboratory.namespaces import inside
from laboratory.netguest import INTERFACE, NamespaceGuest
from laboratory.recorder import wait_until
from laboratory.servers import APPLICATIONS
from test_egress_broker import HOST, PORT, SECRET, give, open_guest, read_body

from ktrdr_vm.egress.client import GuardClient

BASIC = "Basic " + base64.b64encode(b"lab:" + SECRET).decode()
LIMIT = 120
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6


class Forge:
    """git's own server of a repository beside an index of packages; both ask for the credential."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: list[str] = []

    def __call__(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        body = read_body(request)
        if request.headers.get_all("Authorization") != [BASIC]:
            self.refused.append(path)
            self._say(request, 401, b"", "text/plain")
        elif path.startswith("/project.git/"):
            self._ask_git(request, path, query, body)
        elif path == "/simple/demo/":
            self._say(
                request, 200, b'<!DOCTYPE html><a href="../../files/demo-1.0-py3-none-any.whl">demo</a>', "text/html"
            )
        else:
            self._say(request, 200, (self.folder / path.lstrip("/")).read_bytes(), "application/octet-stream")

    def _ask_git(self, request: http.server.BaseHTTPRequestHandler, path: str, query: str, body: bytes) -> None:
        environment = {
            "GIT_PROJECT_ROOT": str(self.folder), "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": "lab", "PATH_INFO": path, "QUERY_STRING": query,
            "REQUEST_METHOD": request.command, "CONTENT_TYPE": request.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""), "PATH": os.environ["PATH"], "HOME": str(self.folder),
        }  # fmt: skip
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=environment, stdout=subprocess.PIPE, timeout=LIMIT, check=True
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self._say(
            request, int(fields.get("Status", "200").split()[0]), answer, fields.get("Content-Type", "text/plain")
        )

    @staticmethod
    def _say(request: http.server.BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


class Wire:
    """Every byte that the guest sends or gets."""

    def __init__(self, guest: NamespaceGuest) -> None:
        self.frames: list[bytes] = []
        with inside(guest.namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
            self._socket.bind((INTERFACE, 0))
        self._socket.settimeout(0.2)
        self._running = True
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                self.frames.append(self._socket.recv(1 << 18))
            except TimeoutError:
                if not self._running:
                    return
            except OSError:
                return  # the guest ended before it was stopped

    def stop(self) -> bytes:
        self._running = False
        self._thread.join(10)
        _, lost = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert lost == 0, "the wire was not heard whole"
        self._socket.close()
        return b"".join(self.frames)


@pytest.fixture
def forge(lab: Lab, tmp_path: Path) -> Iterator[Forge]:
    made = APPLICATIONS[HOST] = Forge(tmp_path / "forge")
    run("git", "init", "-q", "--bare", str(made.folder / "project.git"))
    run("git", "-C", str(made.folder / "project.git"), "config", "http.receivepack", "true")
    (made.folder / "files").mkdir()
    with zipfile.ZipFile(made.folder / "files/demo-1.0-py3-none-any.whl", "w") as wheel:
        code = b"ANSWER = 42\n"
        digest = base64.urlsafe_b64encode(hashlib.sha256(code).digest()).rstrip(b"=").decode()
        wheel.writestr("demo.py", code)
        wheel.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        wheel.writestr(
            "demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        names = "demo-1.0.dist-info/METADATA,,\ndemo-1.0.dist-info/WHEEL,,\ndemo-1.0.dist-info/RECORD,,\n"
        wheel.writestr("demo-1.0.dist-info/RECORD", f"demo.py,sha256={digest},{len(code)}\n{names}")
    yield made
    del APPLICATIONS[HOST]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    return subprocess.run(words, env=settings | environment, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.host_root
def test_git_and_pip_work_and_the_wire_has_no_byte_of_it(lab: Lab, forge: Forge, tmp_path: Path) -> None:
    """A push waits for the gate. Without the broker's header the forge answers 401, as its own list shows."""
    work = tmp_path / "work"
    run("git", "init", "-q", "-b", "work", str(work))
    (work / "big").write_bytes(os.urandom(3 << 20))
    run("git", "-C", str(work), "add", "big")
    run(
        "git",
        "-C",
        str(work),
        "-c",
        "user.name=lab",
        "-c",
        "user.email=lab@test.lab",
        "commit",
        "-qm",
        "more than one buffer",
    )
    commit = run("git", "-C", str(work), "rev-parse", "HEAD").stdout.strip()
    header = "Authorization: Basic {{ ('lab:' ~ secret) | b64encode }}"
    with open_guest(lab, header=header, paths=["/project.git/", "/simple/", "/files/"], after="startability") as guest:
        wire = Wire(guest)
        give(guest)
        url = guest.plan.gateway_variables(guest.gateway)["API_URL"]
        push = ("git", "-C", str(work), "push", "-q", f"{url}/project.git", "work")
        with inside(guest.namespace):
            early = run(*push)
        assert early.returncode != 0 and "403" in early.stderr
        GuardClient(guest.paths.guard).pass_gate("startability")
        with inside(guest.namespace):
            pushed = run(*push)
            # `insteadOf`, as the guest may set it once.
            rewritten = {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"url.{url}/.insteadOf",
                "GIT_CONFIG_VALUE_0": f"https://{HOST}/",
            }
            listed = run("git", "ls-remote", f"https://{HOST}/project.git", **rewritten)
            index = {
                "PIP_INDEX_URL": f"{url}/simple/",
                "PIP_TRUSTED_HOST": guest.gateway,
                "PIP_CONFIG_FILE": "/dev/null",
            }
            words = (
                "install",
                "--no-cache-dir",
                "--disable-pip-version-check",
                "--target",
                str(tmp_path / "installed"),
                "demo",
            )
            installed = run(sys.executable, "-m", "pip", *words, **index)
        assert pushed.returncode == 0, pushed.stderr
        assert f"{commit}\trefs/heads/work" in listed.stdout
        assert installed.returncode == 0, installed.stderr
        assert "ANSWER = 42" in (tmp_path / "installed/demo.py").read_text()
        assert forge.refused == []
        wait_until(
            lambda: guest.ledger(kind="broker", method="POST", path="/project.git/git-receive-pack", status=200),
            "the push is a line",
        )
        heard = wire.stop()
        assert len(heard) > 3 << 20 and b"/project.git/git-receive-pack" in heard and f":{PORT}".encode() in heard
        for form in (SECRET, BASIC.removeprefix("Basic ").encode(), base64.b64encode(SECRET)[:-4], SECRET[4:]):
            assert form not in heard
