"""What tools fetch from: packages of each kind, a Git repository over HTTPS and SSH, a container registry. In a
namespace of its own."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from laboratory.lab import Lab
from laboratory.namespaces import inside, ip, make_namespace, remove_namespace
from laboratory.recorder import wait_until
from laboratory.servers import Authority

NAME, REGISTRY, ADDRESS, HOST = "tools.test.lab", "registry.test.lab", "192.0.2.10", "192.0.2.254"
REGISTRY_PORT = 5000


class _Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""


def write_packages(root: Path) -> None:
    """A package of each kind, made here."""
    wheel = root / "files" / "labdemo-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("labdemo.py", "ANSWER = 42\n")
        archive.writestr("labdemo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: labdemo\nVersion: 1.0\n")
        archive.writestr(
            "labdemo-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("labdemo-1.0.dist-info/RECORD", "labdemo.py,,\n")
    (root / "simple" / "labdemo").mkdir(parents=True)
    (root / "simple" / "labdemo" / "index.html").write_text(f'<a href="/files/{wheel.name}">{wheel.name}</a>')
    (root / "apt").mkdir()
    (root / "apt" / "Packages").write_text(
        "Package: labdemo\nVersion: 1.0\nArchitecture: all\nMaintainer: lab <lab@test.lab>\nFilename: ./labdemo.deb\nSize: 1\n"
        f"SHA256: {hashlib.sha256(b'x').hexdigest()}\nDescription: demo\n\n"
    )
    package = root / "package"
    package.mkdir()
    (package / "package.json").write_text('{"name": "labdemo", "version": "1.0.0", "main": "index.js"}')
    (package / "index.js").write_text("module.exports = 42;\n")
    (root / "npm").mkdir()
    with tarfile.open(root / "npm" / "labdemo-1.0.0.tgz", "w:gz") as archive:
        archive.add(package, "package")
    integrity = (
        "sha512-" + b64encode(hashlib.sha512((root / "npm" / "labdemo-1.0.0.tgz").read_bytes()).digest()).decode()
    )
    dist = {"tarball": f"https://{NAME}/npm/labdemo-1.0.0.tgz", "integrity": integrity}
    version = {"name": "labdemo", "version": "1.0.0", "dist": dist}
    (root / "npm" / "labdemo").write_text(
        json.dumps({"name": "labdemo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}})
    )
    work = root / "work"
    git = ["git", "-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    work.mkdir()
    (work / "README").write_text("from outside\n")
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["commit", "-qm", "one"],
        ["clone", "-q", "--bare", ".", str(root / "demo.git")],
    ):
        subprocess.run([*git, *words], cwd=work, check=True, capture_output=True, timeout=30)
    subprocess.run(["git", "update-server-info"], cwd=root / "demo.git", check=True, timeout=30)


@dataclass(frozen=True)
class ToolServer:
    """Its folder, with `login` (an SSH key), and the authority that its certificate is of."""

    scratch: Path
    authority: Authority


@contextmanager
def running_tool_server(lab: Lab, *, registry: bool = False) -> Iterator[ToolServer]:
    scratch = lab.scratch / "tools"
    root = scratch / "www"
    root.mkdir(parents=True)
    write_packages(root)
    authority = Authority([NAME, REGISTRY])
    make_namespace("tools")
    ip("link add tools0 type veth peer name out netns tools")
    ip(f"addr add {HOST}/24 dev tools0")
    ip("link set tools0 up")
    ip(f"addr add {ADDRESS}/24 dev out", "tools")
    ip("link set out up", "tools")
    for name in (NAME, REGISTRY):
        lab.world.dns.zone[name] = [("A", ADDRESS)]
    with inside("tools"):
        server = http.server.ThreadingHTTPServer((ADDRESS, 443), functools.partial(_Files, directory=str(root)))
    server.socket = authority.server_context(None).wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    children = [start_sshd(scratch)]
    if registry:
        children.append(start_registry(scratch, authority))
    try:
        yield ToolServer(scratch, authority)
    finally:
        for child in children:
            os.kill(child.pid, signal.SIGTERM)
            child.wait(20)
        server.shutdown()
        server.server_close()
        lab.world.reset_zone()
        ip("link del tools0")
        remove_namespace("tools")
        shutil.rmtree(scratch)


def start_sshd(scratch: Path) -> subprocess.Popen[bytes]:
    """OpenSSH's own server in the namespace of the tools, with keys made here."""
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "login"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(scratch / name)], check=True, timeout=30
        )
    options = {
        "HostKey": scratch / "host", "AuthorizedKeysFile": scratch / "login.pub", "StrictModes": "no", "PermitRootLogin": "yes",
        "ListenAddress": ADDRESS, "PidFile": "none", "UsePAM": "no",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    log = (scratch / "sshd.log").open("wb")
    started = subprocess.Popen(
        ["ip", "netns", "exec", "tools", "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *words], stderr=log
    )

    _wait_for(22)
    return started


def start_registry(scratch: Path, authority: Authority) -> subprocess.Popen[bytes]:
    """Debian's docker-registry, with TLS of its own."""
    chain = scratch / "chain.pem"
    chain.write_bytes(authority.chain)
    configuration = scratch / "registry.json"
    configuration.write_text(
        json.dumps(
            {
                "version": "0.1",
                "log": {"level": "warn", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(scratch / "registry")}, "redirect": {"disable": True}},
                "http": {"addr": f"{ADDRESS}:{REGISTRY_PORT}", "tls": {"certificate": str(chain), "key": str(chain)}},
            }
        )
    )
    log = (scratch / "registry.log").open("wb")
    argv = ["ip", "netns", "exec", "tools", "docker-registry", "serve", str(configuration)]
    started = subprocess.Popen(argv, stdout=log, stderr=log)
    _wait_for(REGISTRY_PORT)
    return started


def _wait_for(port: int) -> None:
    def listens() -> bool:
        with inside("tools"), socket.socket() as one:
            return one.connect_ex((ADDRESS, port)) == 0

    wait_until(listens, f"somebody listens on port {port}", 30)
