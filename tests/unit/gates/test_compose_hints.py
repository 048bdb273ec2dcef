"""A failed task whose cause lies in the guest or its image says so in its message, with what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ktrdr_vm.guest.protocol import GuestResult

UNKNOWN = [
    ("validating /workspace/compose.yaml: services.api Additional property provider is not allowed", "provider"),
    ("validating /workspace/compose.yaml: (root) Additional property models is not allowed", "models"),
    ('unsupported env_file format "raw"', 'env_file format "raw"'),
    ("validating compose.yaml: services.web additional properties 'provider' not allowed", "'provider'"),
]


def fail(
    gate: Any, said: str, *, listing: str = "", version: str = "2.26.1-4", containers: Any = (), log: str = ""
) -> Any:
    """The one task of a gate in whose guest every docker command says this."""

    def answer(ran: Any) -> GuestResult:
        if "docker compose version" in ran.line:
            return GuestResult(0, f"{version}\n".encode(), b"")
        if "grep -iE" in ran.line:
            return GuestResult(0, listing.encode(), b"")
        if "docker inspect" in ran.line:
            listed = f"{len(containers)}\n{json.dumps(containers)}" if containers else ""
            return GuestResult(0, listed.encode(), b"")
        if "docker logs" in ran.line:
            return GuestResult(0, f"{ran.line.split()[1].rstrip(';')}\n{log}\n".encode(), b"")
        return (
            GuestResult(1, b"", said.encode() + b"\n") if "docker compose up" in ran.line else GuestResult(0, b"", b"")
        )

    gate.guest.answer = answer
    task = "- shell: {cmd: docker compose up, chdir: '{{ src }}'}\n  vars: {src: /work space}"
    return gate.run(task).tasks[0]


@pytest.mark.parametrize(("said", "name"), UNKNOWN)
def test_the_version_of_compose_is_named_beside_a_property_that_it_does_not_know(
    gate: Any, said: str, name: str
) -> None:
    message = fail(gate, said).message
    assert f"the image has Compose 2.26.1-4, which does not know {name}" in message and "newer Compose" in message
    assert f"the Compose of the image does not know {name}" in fail(gate, said, version="; rm -rf /").message


def test_another_compose_file_is_named_where_there_is_no_default_one(gate: Any) -> None:
    said = "no configuration file provided: not found"
    message = fail(gate, said, listing="docker-compose.sandbox.yml\ncompose.test.yaml\n").message
    assert "docker-compose.sandbox.yml, compose.test.yaml" in message
    assert "`environment: {COMPOSE_FILE: docker-compose.sandbox.yml}`" in message
    asked = next(ran.line for ran in gate.guest.ran if "grep -iE" in ran.line)
    assert asked.startswith("cd -- '/work space' && ls")
    assert "COMPOSE_FILE" not in fail(gate, said, listing="").message
    assert "COMPOSE_FILE" not in fail(gate, said, listing="$(evil).yml\n").message


@pytest.mark.parametrize(
    ("said", "kind", "name"),
    [
        ("network shared declared as external, but could not be found", "network", "shared"),
        ('network "a_b" declared as external, but could not be found. Please create', "network", "a_b"),
        ('external volume "data" not found', "volume", "data"),
        ("Error response: x\nexternal network shared not found\nno container was created", "network", "shared"),
    ],
)
def test_an_external_network_or_volume_is_named_in_the_first_line(gate: Any, said: str, kind: str, name: str) -> None:
    message = fail(gate, said).message
    assert f"{kind} {name} is external and does not exist in the guest" in message and f"external_{kind}s" in message


def test_a_folder_that_a_container_may_not_write_to_is_named(gate: Any) -> None:
    container = {
        "Id": "aaa", "Name": "/p-api-1", "State": {"Status": "exited", "ExitCode": 1},
        "Mounts": [{"Type": "bind", "Source": "/workspace/logs", "Destination": "/app/logs"}, {"Type": "volume", "Name": "x"}, 7],
    }  # fmt: skip
    denied = "PermissionError: [Errno 13] Permission denied: '/app/logs/app.log'"
    message = fail(gate, "api did not stay up", containers=[container], log=f"starting\n{denied}").message
    assert "container p-api-1 may not write to /app/logs, which is the folder /workspace/logs of the guest" in message
    for log in ("Permission denied: '/etc/shadow'", "opened /app/logs/app.log"):
        assert "may not write" not in fail(gate, "api did not stay up", containers=[container], log=log).message


def test_an_image_without_docker_is_named(gate: Any) -> None:
    assert "the image has no Docker" in fail(gate, "sh: 1: eval: docker: not found").message


def test_what_is_not_known_adds_nothing(gate: Any) -> None:
    assert fail(gate, "boom").message == "non-zero return code 1: boom"
