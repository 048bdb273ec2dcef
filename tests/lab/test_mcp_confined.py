"""The MCP server works in one workspace: every tool of it, with what belongs to another one. No VM; nothing may be
reached."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp import Client

from ktrdr_vm import api
from ktrdr_vm.cli.mcp_speaker import make_server
from ktrdr_vm.cli.mcp_tools import answer
from ktrdr_vm.gates.model import Playbook
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.runs import create_run, hand_over
from ktrdr_vm.report.json import make_report_document, render_report_json
from ktrdr_vm.report.model import Allowance, Attachment, Denial, GateResult, RunReport, TaskResult
from ktrdr_vm.run import gates as gate_run

PROFILE = "version: 1\nname: p\nimage: debian-13-docker\nworkspace: {source: .}\n"
PLAY = "- hosts: all\n  tasks: [{name: send, ansible.builtin.copy: {src: secret, dest: /tmp/}}]\n"
SECRET = "root's own words"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace `a`, another one `b` with an instance and a run, and a folder of root's beside them."""
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    for name in ("a", "b"):
        root = tmp_path / name
        (root / "playbooks").mkdir(parents=True)
        (root / "p.yaml").write_text(PROFILE)
        settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "base"]):
            subprocess.run(["git", *settings, *words], cwd=root, check=True, capture_output=True)
    outside = tmp_path / "roots"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    (outside / "x.yaml").write_text(PLAY)
    (outside / "p.yaml").write_text(PROFILE + f"# {SECRET}\n")
    home = Home(tmp_path / "home")
    home.create()
    for instance_id, workspace in (("foreign", "b"), ("own", "a")):
        facts = {"workspace": str(tmp_path / workspace), "owner_uid": os.getuid()}
        home.instance(instance_id).directory.mkdir()
        Journal(home.instance(instance_id).journal, instance_id, plan={"facts": facts}).enter("awake")
        run = create_run(home, instance_id, "r1")
        (run / "plan.json").write_text(json.dumps({"facts": facts}))
        (run / "report.json").write_text(render_report_json(REPORT))
        hand_over(run, (os.getuid(), os.getgid()))
        (run.parent / "latest").symlink_to("r1")
    return tmp_path


REPORT = RunReport(
    "own", "r1", "p", "sandbox", "a" * 64, "b" * 64, "passed", 0, "2026-01-01T00:00:00Z", 1.5,
    gates=(GateResult("g", "passed", "2026-01-01T00:00:00Z", 1.0, (TaskResult("t", "command", "ok", False, "2026-01-01T00:00:00Z", 0.5, evidence=(Attachment("a", "b"),)),)),),
    allowed=(Allowance("a.example", "", 443, "r", 1),), denied=(Denial("b.example", "", 443, "tls", 1, "", ""),),
)  # fmt: skip


def answer_in(workspace: Path) -> Callable[[bytes], Awaitable[bytes]]:
    async def ask(request: bytes) -> bytes:
        return answer(workspace, request)

    return ask


def call(workspace: Path, tool: str, arguments: dict[str, Any]) -> Any:
    async def session() -> Any:
        async with Client(make_server(answer_in(workspace))) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(session())


def list_tools(workspace: Path) -> dict[str, dict[str, Any]]:
    async def session() -> Any:
        async with Client(make_server(answer_in(workspace))) as client:
            return {tool.name: tool.input_schema["properties"] for tool in (await client.list_tools()).tools}

    return asyncio.run(session())


# A value for each parameter that a tool has: a new one has to be added here, and is then tried as well.
VALUES: dict[str, Any] = {
    "profile": "p.yaml", "instance_id": "foreign", "keep": False, "command": ["id"], "timeout": 5, "name": "x", "run_id": "latest",
    "ref": "HEAD", "branch": "x", "comments": "x", "expect": "",
}  # fmt: skip


def test_every_tool_refuses_what_belongs_to_another_workspace(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    monkeypatch.setattr(api, "LivingInstance", lambda *_: touched.append("instance"))
    monkeypatch.setattr(api, "apply", lambda *_, **__: touched.append("apply"))
    monkeypatch.setattr(api, "list_instances", lambda: [{"instance_id": "foreign"}, {"instance_id": "own"}])
    tools = list_tools(place / "a")
    assert len(tools) >= 7
    for tool, properties in tools.items():
        answer = call(place / "a", tool, {name: VALUES[name] for name in properties})
        text = "".join(one.text for one in answer.content)
        if tool == "list_instances":
            assert "own" in text and "foreign" not in text
        else:
            assert answer.is_error and "belongs to this workspace" in text, (tool, text)
    assert touched == []


def test_what_is_its_own_is_there(place: Path) -> None:
    answer = call(place / "a", "report", {"instance_id": "own"})
    assert not answer.is_error and json.loads(answer.content[0].text)["instance_id"] == "own"


def test_a_run_whose_plan_was_rewritten_is_nobody_s(place: Path) -> None:
    """Else whoever may write into a run of B makes it one of A's."""
    plan = place / "home/runs/foreign/r1/plan.json"
    plan.write_text(json.dumps({"facts": {"workspace": str(place / "a"), "owner_uid": os.getuid()}}))
    assert call(place / "a", "report", {"instance_id": "foreign"}).is_error


@pytest.mark.parametrize("how", ["link", "link on the way", "absolute", "dots", "link of a name"])
@pytest.mark.parametrize("tool", ["plan", "apply", "gate"])
def test_files_of_outside_are_not_read(place: Path, monkeypatch: pytest.MonkeyPatch, tool: str, how: str) -> None:
    workspace, file = place / "a", "x.yaml" if tool == "gate" else "p.yaml"
    (workspace / "link.yaml").symlink_to(place / "roots" / file)
    (workspace / "deep").symlink_to(place / "roots")
    (workspace / "playbooks/named.yaml").symlink_to(place / "roots" / file)
    name = {
        "link": "./link.yaml", "link on the way": f"deep/{file}", "absolute": str(place / "roots" / file), "dots": f"../roots/{file}",
        "link of a name": "named" if tool == "gate" else "playbooks/named.yaml",
    }[how]  # fmt: skip
    ran: list[Playbook | str] = []
    monkeypatch.setattr(gate_run, "run_playbook", lambda playbook, *_: ran.append(playbook))
    monkeypatch.setattr(api, "apply", lambda *_, **__: ran.append("apply"))
    awake = SimpleNamespace(target=SimpleNamespace(refuse_suspended=lambda: None), close=lambda: None)
    monkeypatch.setattr(api.HostInstance, "load", lambda _self: awake)
    arguments = {"instance_id": "own", "name": name} if tool == "gate" else {"profile": name, "instance_id": "own"}
    answer = call(workspace, tool, arguments)
    text = "".join(one.text for one in answer.content)
    assert answer.is_error and SECRET not in text and ran == [], text


def test_one_report_has_one_shape_for_a_client(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "apply", lambda *_, **__: REPORT)
    applied = call(place / "a", "apply", {"profile": "p.yaml", "instance_id": "own"})
    read = call(place / "a", "report", {"instance_id": "own"})
    assert (
        json.loads(applied.content[0].text)
        == json.loads(read.content[0].text)
        == json.loads(json.dumps(make_report_document(REPORT)))
    )
