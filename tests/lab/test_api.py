"""The examples of docs/python.md, run; an MCP client's session; metrics. One fork each."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from laboratory.command import PROGRAM, assert_nothing_left, run
from laboratory.lab import Lab
from mcp import Client, StdioServerParameters

from ktrdr_vm.host.paths import PROJECT

pytestmark = pytest.mark.usefixtures("image")

PROFILE = "version: 1\nname: from-python\nimage: debian-13-docker\nresources: {vcpus: 2, memory: 2GiB, disk: 10GiB}\n"
GATE = "- name: docs\n  hosts: all\n  tasks:\n    - name: it runs\n      ansible.builtin.command: {cmd: 'true'}\n"


@pytest.fixture(scope="module")
def workspace(lab: Lab) -> Path:
    place = lab.scratch / "python"
    (place / "profiles").mkdir(parents=True)
    (place / "sandbox.yaml").write_text(PROFILE)
    (place / "profiles" / "startability.yaml").write_text(PROFILE)
    (place / "gate.yaml").write_text(GATE)
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "base"]):
        subprocess.run(["git", *settings, *words], cwd=place, check=True, capture_output=True)
    return place


def test_the_examples_in_the_documentation_do_what_they_say(lab: Lab, workspace: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, **lab.environment},
    )
    assert ended.returncode == 0, ended.stderr
    digest, kernel, gate, run_line, same = (line for line in ended.stdout.splitlines() if line)
    assert (
        re.match(r"[0-9a-f]{64} \['domain.xml'", digest) and kernel.startswith("0 6.") and gate == "passed ['it runs']"
    )
    assert (run_line, same) == ("passed 0 ()", "True")
    assert_nothing_left(lab, "from-python")


def test_a_client_of_the_protocol_gets_the_safe_part_and_no_approval(lab: Lab, workspace: Path) -> None:
    instance_id = lab.new_id("protocol")
    server = StdioServerParameters(
        command=PROGRAM[0],
        args=[*PROGRAM[1:], "mcp", "--workspace", str(workspace)],
        env={**os.environ, **lab.environment},
    )

    async def session() -> dict[str, Any]:
        async with Client(server, read_timeout_seconds=1200) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            calls: dict[str, dict[str, Any]] = {
                "plan": {"profile": "sandbox.yaml", "instance_id": instance_id},
                "outside": {"profile": "../../etc/passwd"},
                "apply": {"profile": "sandbox.yaml", "instance_id": instance_id, "keep": True},
                "execute": {"instance_id": instance_id, "command": ["id", "-un"]},
                "gate": {"instance_id": instance_id, "name": "./gate.yaml"},
                "report": {"instance_id": instance_id},
                "escalations": {"instance_id": instance_id},
            }
            found: dict[str, Any] = {"names": names}
            for name, arguments in calls.items():
                found[name] = await client.call_tool("plan" if name == "outside" else name, arguments)
            return found

    found = asyncio.run(session())
    try:
        assert found["names"] == {
            "plan",
            "apply",
            "list_instances",
            "execute",
            "gate",
            "push",
            "revision",
            "report",
            "escalations",
        }
        assert not any(
            word in name for name in found["names"] for word in ("approve", "deny", "revoke", "grant", "secret")
        )
        assert found["outside"].is_error and "no profile" in text(found["outside"])
        assert not found["apply"].is_error, text(found["apply"])
        assert json.loads(text(found["execute"]))["stdout"] == "ktrdr\n"
        assert json.loads(text(found["gate"]))["outcome"] == "passed"
        assert json.loads(text(found["report"]))["instance_id"] == instance_id
        metrics = run(lab, "metrics").stdout
        assert f'ktrdr_vm_instance_up{{environment="sandbox",instance_id="{instance_id}"}} 1.0' in metrics
        assert (
            f'ktrdr_vm_run_outcome{{environment="sandbox",instance_id="{instance_id}",outcome="passed"}} 1.0' in metrics
        )
    finally:
        assert run(lab, "destroy", instance_id).code == 0
    assert_nothing_left(lab, instance_id)


def text(result: Any) -> str:
    return "".join(part.text for part in result.content)
