"""Git over HTTPS and SSH, pip, apt and npm through the allowlist, unchanged: nobody stands in the middle of their TLS.

The clients are this machine's own, in a guest's network namespace. What they trust is the lab server's authority, as any client
trusts its server's; nothing of the guard's is added, and the certificate that arrives is the server's own.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.lab import Lab
from laboratory.namespaces import inside, ip, make_namespace, remove_namespace
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until
from laboratory.servers import Authority

NAME, ADDRESS, HOST = "tools.test.lab", "192.0.2.10", "192.0.2.254"


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
        archive.writestr("labdemo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
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
    integrity = "sha512-" + b64encode(hashlib.sha512((root / "npm" / "labdemo-1.0.0.tgz").read_bytes()).digest()).decode()
    dist = {"tarball": f"https://{NAME}/npm/labdemo-1.0.0.tgz", "integrity": integrity}
    version = {"name": "labdemo", "version": "1.0.0", "dist": dist}
    (root / "npm" / "labdemo").write_text(json.dumps({"name": "labdemo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}))
    work = root / "work"
    git = ["git", "-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    work.mkdir()
    (work / "README").write_text("from outside\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"], ["clone", "-q", "--bare", ".", str(root / "demo.git")]):
        subprocess.run([*git, *words], cwd=work, check=True, capture_output=True, timeout=30)
    subprocess.run(["git", "update-server-info"], cwd=root / "demo.git", check=True, timeout=30)


class Tools:
    """A guest, and how a client runs in it."""

    def __init__(self, guest: NamespaceGuest, scratch: Path, authority: Authority) -> None:
        self.guest, self.scratch, self.authority = guest, scratch, authority
        self.ca = scratch / "ca.pem"
        self.ca.write_text(authority.pem)
        self.resolv = scratch / "resolv.conf"
        self.resolv.write_text(f"nameserver {guest.gateway}\n")

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """The output of a client in the guest's network, with the guest's resolver. A client that fails is a failure."""
        script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
        done = subprocess.run(
            ["ip", "netns", "exec", self.guest.namespace, "unshare", "-m", "--propagation", "private", "sh", "-c", script,
             str(self.resolv), *words],
            cwd=cwd or self.scratch, capture_output=True, text=True, timeout=120,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.scratch), "LC_ALL": "C.UTF-8", **environment},
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tools(lab: Lab) -> Iterator[Tools]:
    scratch = lab.scratch / "tools"
    root = scratch / "www"
    root.mkdir(parents=True)
    write_packages(root)
    authority = Authority([NAME])
    make_namespace("tools")
    ip("link add tools0 type veth peer name out netns tools")
    ip(f"addr add {HOST}/24 dev tools0")
    ip("link set tools0 up")
    ip(f"addr add {ADDRESS}/24 dev out", "tools")
    ip("link set out up", "tools")
    lab.world.dns.zone[NAME] = [("A", ADDRESS)]
    with inside("tools"):
        server = http.server.ThreadingHTTPServer((ADDRESS, 443), functools.partial(_Files, directory=str(root)))
    server.socket = authority.server_context(None).wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sshd = start_sshd(scratch)
    try:
        with NamespaceGuest(lab.home, [{"host": NAME, "ports": [443, 22]}]) as guest:
            yield Tools(guest, scratch, authority)
    finally:
        os.kill(sshd.pid, signal.SIGTERM)
        sshd.wait(20)
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
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(scratch / name)], check=True, timeout=30)
    options = {
        "HostKey": scratch / "host", "AuthorizedKeysFile": scratch / "login.pub", "StrictModes": "no", "PermitRootLogin": "yes",
        "ListenAddress": ADDRESS, "PidFile": "none", "UsePAM": "no",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    log = (scratch / "sshd.log").open("wb")
    started = subprocess.Popen(["ip", "netns", "exec", "tools", "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *words], stderr=log)

    def listens() -> bool:
        with inside("tools"), socket.socket() as one:
            return one.connect_ex((ADDRESS, 22)) == 0

    wait_until(listens, "sshd listens", 20)
    return started


def test_the_certificate_that_arrives_is_the_servers_own(tools: Tools) -> None:
    context = ssl.create_default_context(cadata=tools.authority.pem)
    with inside(tools.guest.namespace):
        address = tools.guest.lookup(NAME)["addresses"][0]
        with socket.create_connection((address, 443), 10) as plain, context.wrap_socket(plain, server_hostname=NAME) as connection:
            issuer = dict(pair[0] for pair in connection.getpeercert()["issuer"])  # type: ignore[index,union-attr,misc]
    assert issuer == {"commonName": "lab authority"}


def test_git_over_https(tools: Tools) -> None:
    tools.run("git", "clone", "-q", f"https://{NAME}/demo.git", "https-clone", GIT_SSL_CAINFO=str(tools.ca))
    assert (tools.scratch / "https-clone" / "README").read_text() == "from outside\n"
    wait_until(lambda: tools.guest.ledger(kind="tls", verdict="allow", name=NAME, rule="name"), "the ledger has it")


def test_git_over_ssh(tools: Tools) -> None:
    command = f"ssh -F /dev/null -i {tools.scratch}/login -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
    tools.run("git", "clone", "-q", f"ssh://root@{NAME}{tools.scratch}/www/demo.git", "ssh-clone", GIT_SSH_COMMAND=command)
    assert (tools.scratch / "ssh-clone" / "README").read_text() == "from outside\n"
    wait_until(lambda: tools.guest.ledger(kind="tcp", verdict="allow", name=NAME, port=22), "the ledger has it")


def test_pip_install(tools: Tools) -> None:
    target = tools.scratch / "pip"
    tools.run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--index-url",
        f"https://{NAME}/simple/", "--cert", str(tools.ca), "--target", str(target), "labdemo",
    )  # fmt: skip
    assert (target / "labdemo.py").read_text() == "ANSWER = 42\n"


def test_apt_get_update(tools: Tools) -> None:
    place = tools.scratch / "apt"
    for name in ("lists/partial", "cache/archives/partial", "etc"):
        (place / name).mkdir(parents=True)
    (place / "etc" / "sources.list").write_text(f"deb [trusted=yes] https://{NAME}/apt ./\n")
    options = {
        "Dir::State::lists": place / "lists", "Dir::Cache": place / "cache", "Dir::Etc::sourcelist": place / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "-", "Acquire::https::CAInfo": tools.ca, "APT::Sandbox::User": "root", "Acquire::Languages": "none",
        "Acquire::http::Proxy": "false", "Acquire::https::Proxy": "false",
    }  # fmt: skip
    said = tools.run("apt-get", *(word for name, value in options.items() for word in ("-o", f"{name}={value}")), "update")
    assert any("_Packages" in path.name for path in (place / "lists").iterdir()) and "Fetched" in said, said


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed here")
def test_npm_install(tools: Tools) -> None:
    place = tools.scratch / "npm-project"
    place.mkdir()
    (place / "package.json").write_text('{"name": "x", "version": "1.0.0", "private": true}')
    tools.run(
        "npm", "install", "--no-audit", "--no-fund", "--no-update-notifier", f"--registry=https://{NAME}/npm/", f"--cafile={tools.ca}",
        "--cache", str(tools.scratch / "npm-cache"), "labdemo", cwd=place,
    )  # fmt: skip
    assert (place / "node_modules" / "labdemo" / "index.js").read_text() == "module.exports = 42;\n"


def test_the_same_clients_fail_where_the_name_is_not_allowed(lab: Lab, tools: Tools) -> None:
    """So that the tests above can fail: without the rule there is no clone."""
    with NamespaceGuest(lab.home, [{"host": "allowed.test.lab", "ports": [443]}]) as guest:
        other = Tools(guest, tools.scratch, tools.authority)
        with pytest.raises(AssertionError, match="Could not resolve host"):
            other.run("git", "clone", "-q", f"https://{NAME}/demo.git", "refused", GIT_SSL_CAINFO=str(tools.ca))
        tools.resolv.write_text(f"nameserver {tools.guest.gateway}\n")
