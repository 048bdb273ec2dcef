"""Git over HTTPS and SSH, pip, apt and npm through the allowlist, unchanged: nobody stands in the middle of their TLS.

The clients are this machine's own, in a guest's network namespace. What they trust is the lab server's authority, as
any client trusts its server's; nothing of the guard's is added, and the certificate that arrives is the server's own.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.lab import Lab
from laboratory.namespaces import inside
from laboratory.netguest import NamespaceGuest
from laboratory.recorder import wait_until
from laboratory.servers import Authority
from laboratory.toolserver import NAME, running_tool_server


class Tools:
    """A guest, and how a client runs in it."""

    def __init__(self, guest: NamespaceGuest, scratch: Path, authority: Authority) -> None:
        self.guest, self.scratch, self.authority = guest, scratch, authority
        self.ca = scratch / "ca.pem"
        self.ca.write_text(authority.pem)
        self.resolv = scratch / "resolv.conf"
        self.resolv.write_text(f"nameserver {guest.gateway}\n")

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """The output of a client in the guest's network, with the guest's resolver. A client that fails is a
        failure."""
        script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
        done = subprocess.run(
            ["ip", "netns", "exec", self.guest.namespace, "unshare", "-m", "--propagation", "private", "sh", "-c", script,
             str(self.resolv), *words],
            cwd=cwd or self.scratch, capture_output=True, text=True, timeout=120,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.scratch), "LC_ALL": "C.UTF-8", **environment},
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout + done.stderr


# The server of Git has an sshd, which a world cannot run.
pytestmark = pytest.mark.host_root


@pytest.fixture(scope="module")
def tools(lab: Lab) -> Iterator[Tools]:
    with running_tool_server(lab) as server, NamespaceGuest(lab.home, [{"host": NAME, "ports": [443, 22]}]) as guest:
        yield Tools(guest, server.scratch, server.authority)


def test_the_certificate_that_arrives_is_the_servers_own(tools: Tools) -> None:
    context = ssl.create_default_context(cadata=tools.authority.pem)
    with inside(tools.guest.namespace):
        address = tools.guest.lookup(NAME)["addresses"][0]
        with (
            socket.create_connection((address, 443), 10) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as connection,
        ):
            issuer = dict(pair[0] for pair in connection.getpeercert()["issuer"])  # type: ignore[index,union-attr,misc]
    assert issuer == {"commonName": "lab authority"}


def test_git_over_https(tools: Tools) -> None:
    tools.run("git", "clone", "-q", f"https://{NAME}/demo.git", "https-clone", GIT_SSL_CAINFO=str(tools.ca))
    assert (tools.scratch / "https-clone" / "README").read_text() == "from outside\n"
    wait_until(lambda: tools.guest.ledger(kind="tls", verdict="allow", name=NAME, rule="name"), "the ledger has it")


def test_git_over_ssh(tools: Tools) -> None:
    command = f"ssh -F /dev/null -i {tools.scratch}/login -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
    tools.run(
        "git", "clone", "-q", f"ssh://root@{NAME}{tools.scratch}/www/demo.git", "ssh-clone", GIT_SSH_COMMAND=command
    )
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
    said = tools.run(
        "apt-get", *(word for name, value in options.items() for word in ("-o", f"{name}={value}")), "update"
    )
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
