"""The tools that work needs, in a virtual machine and through the allowlist: Git, pip, apt, npm and Docker, against
servers outside.

The guest trusts the lab servers' authority, as any machine trusts the authorities of the servers it uses; of the guard
nothing is added, and no name but the two that the profile lists is ever asked for.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.command import run, start
from laboratory.lab import Lab
from laboratory.toolserver import NAME, REGISTRY, REGISTRY_PORT, ToolServer, running_tool_server

# sshd needs rights that the root of a world does not have.
pytestmark = [pytest.mark.usefixtures("image"), pytest.mark.host_root]

REPOSITORY = f"{REGISTRY}:{REGISTRY_PORT}"
PROFILE = f"""\
version: 1
name: tools
image: debian-13-docker
resources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}
egress:
  allow:
    - {{host: {NAME}, ports: [443, 22]}}
    - {{host: {REGISTRY}, ports: [{REGISTRY_PORT}]}}
"""


class Machine:
    """A kept sandbox with the lab's authority in it."""

    def __init__(self, lab: Lab, instance_id: str) -> None:
        self.lab, self.instance_id = lab, instance_id

    def call(self, line: str, *, code: int = 0) -> str:
        done = run(self.lab, "exec", self.instance_id, "--", "sudo", "bash", "-ec", line, limit=600)
        assert done.code == code, f"{line}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[ToolServer]:
    with running_tool_server(lab, registry=True) as made:
        yield made


@pytest.fixture(scope="module")
def machine(lab: Lab, server: ToolServer) -> Iterator[Machine]:
    profile = lab.scratch / "tools.yaml"
    profile.write_text(PROFILE)
    name = lab.new_id("tools")
    ended = start(lab, name, "apply", profile, "--instance-id", name, "--keep", "always").wait()
    assert ended.code == 0, ended.stderr
    made = Machine(lab, name)
    try:
        authority = server.scratch / "authority.pem"
        authority.write_text(server.authority.pem)
        for path in (authority, server.scratch / "login", _find_pip()):
            assert run(lab, "cp", path, f"{name}:/tmp/").code == 0
        made.call(
            f"mkdir -p /etc/docker/certs.d/{REPOSITORY} && cp /tmp/authority.pem /etc/docker/certs.d/{REPOSITORY}/ca.crt"
        )
        yield made
    finally:
        assert run(lab, "destroy", "--yes", name).code == 0


def _find_pip() -> Path:
    """pip as this Python brings it; the guest's has none, and it runs from its archive."""
    import ensurepip

    for folder in (Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels")):
        for path in folder.glob("pip-*.whl"):
            return path
    raise AssertionError("no archive of pip is here")


def test_git_over_https_and_ssh(machine: Machine, server: ToolServer) -> None:
    machine.call(
        f"cd /tmp && GIT_SSL_CAINFO=/tmp/authority.pem git clone -q https://{NAME}/demo.git by-https && cat by-https/README"
    )
    ssh = "ssh -F /dev/null -i /tmp/login -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
    address = f"ssh://root@{NAME}{server.scratch}/www/demo.git"
    machine.call(
        f"cd /tmp && chmod 600 login && GIT_SSH_COMMAND='{ssh}' git clone -q {address} by-ssh && diff -r by-https/README by-ssh/README"
    )


def test_pip_install(machine: Machine) -> None:
    words = f"--target /tmp/installed --no-deps --quiet --disable-pip-version-check --cert /tmp/authority.pem --index-url https://{NAME}/simple/"
    said = machine.call(
        f"PYTHONPATH=$(ls /tmp/pip-*.whl) python3 -m pip install {words} labdemo; PYTHONPATH=/tmp/installed python3 -c 'import labdemo; print(labdemo.ANSWER)'"
    )
    assert "42" in said.splitlines()


def test_apt_get_update(machine: Machine) -> None:
    machine.call(
        f"mkdir -p /tmp/apt/lists /tmp/apt/cache; echo 'deb [trusted=yes] https://{NAME}/apt ./' > /tmp/apt/sources.list;"
        " apt-get -o Dir::Etc::sourcelist=/tmp/apt/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=/tmp/apt/lists"
        " -o Dir::Cache=/tmp/apt/cache -o Acquire::https::CAInfo=/tmp/authority.pem -o APT::Sandbox::User=root -q update"
        " && grep -rq labdemo /tmp/apt/lists"
    )


def test_npm_install(machine: Machine, server: ToolServer) -> None:
    """The guest's image has neither Node nor npm: it gets the host's own files, its program and the package as it is
    published."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node or npm is not installed here")
    package = Path(npm).resolve().parents[1]
    if not (package / "node_modules").is_dir():
        pytest.skip(f"npm in {package} is in parts all over the host, and cannot be carried")
    archive = server.scratch / "npm.tar"
    with tarfile.open(archive, "w") as file:
        file.add(Path(node).resolve(), "node/node")
        for part in ("bin", "lib", "node_modules", "package.json"):
            file.add(package / part, f"node/npm/{part}")
    assert run(machine.lab, "cp", archive, f"{machine.instance_id}:/tmp/").code == 0
    machine.call(
        "tar -C /tmp -xf /tmp/npm.tar && rm /tmp/npm.tar && mkdir -p /tmp/project && cd /tmp/project && "
        'echo \'{"name": "x", "version": "1.0.0", "private": true}\' > package.json && '
        "PATH=/tmp/node:$PATH /tmp/node/node /tmp/node/npm/bin/npm-cli.js install --no-audit --no-fund --no-update-notifier "
        f"--registry=https://{NAME}/npm/ --cafile=/tmp/authority.pem --cache /tmp/npm-cache labdemo"
    )
    assert "42" in machine.call("cd /tmp/project && /tmp/node/node -p 'require(\"labdemo\")'").splitlines()


def test_docker_build_push_pull_and_build_from_the_registry(machine: Machine) -> None:
    machine.call(
        "mkdir -p /tmp/small && cd /tmp/small && cp /bin/busybox . && "
        'printf \'FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT ["/bin/busybox", "echo", "from the registry"]\n\' > Dockerfile && '
        f"docker build -q -t {REPOSITORY}/small:1 . && docker push -q {REPOSITORY}/small:1 && docker image rm -f {REPOSITORY}/small:1"
    )
    machine.call(f"docker pull -q {REPOSITORY}/small:1")
    assert "from the registry" in machine.call(f"docker run --rm --network none {REPOSITORY}/small:1")
    machine.call(
        f"docker image rm -f {REPOSITORY}/small:1 && docker builder prune -af >/dev/null && mkdir -p /tmp/larger && cd /tmp/larger && "
        f"printf 'FROM {REPOSITORY}/small:1\nCOPY Dockerfile /Dockerfile\n' > Dockerfile && docker build -q -t larger . && docker run --rm --network none larger"
    )


def test_what_is_not_listed_is_refused_with_the_clients_own_words(machine: Machine) -> None:
    """The same clients, another name: a denial is an error at once, and never a hang."""
    said = machine.call("docker pull -q other.test.lab/small:1 || exit 9", code=9)
    assert "no such host" in said or "server misbehaving" in said or "reset" in said
    said = machine.call("git clone -q https://other.test.lab/demo.git /tmp/other || exit 9", code=9)
    assert "Could not resolve host" in said


def test_the_ledger_has_them_all_by_name(lab: Lab, machine: Machine) -> None:
    rows = [json.loads(line) for line in run(lab, "egress", "log", machine.instance_id, "--json").stdout.splitlines()]
    reached = {
        (row["name"], row["port"])
        for row in rows
        if row["verdict"] == "allow" and row["kind"] != "dns" and row.get("name")
    }
    assert reached >= {(NAME, 443)}
    # apt first asks where the service is; that is a name of its own, and nobody listed it.
    denied = {row["name"] for row in rows if row["verdict"] == "deny" and row["kind"] == "dns"}
    assert denied == {"other.test.lab", f"_https._tcp.{NAME}"}
    assert {row["name"] for row in rows if row["verdict"] == "allow" and row["kind"] == "dns"} == {NAME, REGISTRY}
