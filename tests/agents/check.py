"""`FOLDER`: what the agents that npm installed in the folder ask of their model, held against the brokers of
profiles/agents.

Each runs as its profile runs it, without root, with a home of its own and a server on the loopback in the place of the
broker.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.inputs.resolve import read_profile

_LIMIT = 90
_NOBODY = pwd.getpwnam("nobody")


class _Model(BaseHTTPRequestHandler):
    """Refuses every question in the form of an API, and keeps what was asked."""

    asked: list[tuple[str, str, dict[str, str]]] = []

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.asked.append((self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
        said = b'{"error": {"type": "invalid_request_error", "message": "nothing is answered here"}}'
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = _refuse

    def log_message(self, *_: Any) -> None:
        return


def check(profile_path: Path, place: Path) -> list[str]:
    """What is wrong."""
    profile = read_profile(profile_path, PROJECT).profile
    (broker,) = [secret.broker for secret in profile.secrets if secret.broker]
    assert profile.workload is not None
    home = place / profile.name
    home.mkdir()
    (home / "TASK.md").write_text("Say hello.\n")
    subprocess.run(["chown", "-R", "nobody:", home], check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Model.asked.clear()
    environment = {
        **{name: value.replace("/var/tmp/agent", str(home)) for name, value in profile.environment},
        "HOME": str(home),
        "PATH": f"{place}/node_modules/.bin:{os.environ['PATH']}",
        broker.base_url_env: f"http://127.0.0.1:{server.server_port}{broker.base_path.rstrip('/')}",
    }
    # One that asks again and again has asked by then.
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            list(profile.workload.command), cwd=home, env=environment, user=_NOBODY.pw_uid, group=_NOBODY.pw_gid, extra_groups=[],
            timeout=_LIMIT, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    server.shutdown()
    questions = [one for one in _Model.asked if one[0] != "HEAD"]
    problems = [] if questions else ["it asked nothing of its model"]
    header = broker.header.name.lower()
    for method, path, headers in questions:
        if method not in broker.methods:
            problems.append(f"{method} {path}: the method is not allowed")
        if broker.paths and not any(path.startswith(prefix) for prefix in broker.paths):
            problems.append(f"{method} {path}: the path is not allowed")
        if "upgrade" in headers:
            problems.append(f"{method} {path}: it asks for {headers['upgrade']}")
        if "brokered" not in headers.get(header, ""):
            problems.append(f"{method} {path}: the key is not in {header}")
    transcript = [home / Path(str(one).replace("/var/tmp/agent", str(home))) for one in profile.artifacts]
    problems += [f"no transcript in {one}" for one in transcript if not list(one.rglob("*.jsonl"))]
    return problems


def main() -> int:
    place, code = Path(sys.argv[1]), 0
    place.chmod(0o755)
    for name, package in (("claude-code", "@anthropic-ai/claude-code"), ("codex", "@openai/codex")):
        manifest = (place / "node_modules" / package / "package.json").read_text()
        version = re.search(r'"version": "([^"]+)"', manifest)
        problems = check(PROJECT / f"profiles/agents/{name}.yaml", place)
        print(
            f"{name:<12} {package} {version.group(1) if version else 'unknown'}: {'; '.join(dict.fromkeys(problems)) or 'as its profile says'}"
        )
        code |= bool(problems)
    return code


if __name__ == "__main__":
    sys.exit(main())
