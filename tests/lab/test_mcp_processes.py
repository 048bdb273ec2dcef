"""Who speaks with an MCP client, and what becomes of calls that it gives up. No VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory.command import PROGRAM
from laboratory.lab import Lab
from mcp import Client, StdioServerParameters

from ktrdr_vm.cli import mcp as command
from ktrdr_vm.cli.mcp_tools import answer

PERSON = (54321, 54322)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    return place


def read_status(pid: int) -> dict[str, str]:
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, value in lines}


def find_speaker(program: int) -> int:
    """The pid of the speaker that the process `program` has started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and read_status(int(entry.name))["PPid"] == str(program):
            return int(entry.name)
    raise AssertionError("there is no speaker")


@pytest.mark.parametrize("owner", ["behind sudo", "of the workspace", "root"])
def test_what_reads_a_client_s_messages_has_no_privilege(lab: Lab, workspace: Path, tmp_path: Path, owner: str) -> None:
    environment = {**os.environ, **lab.environment}
    environment.pop("SUDO_UID", None)
    if owner == "behind sudo":
        environment |= {"SUDO_UID": str(PERSON[0]), "SUDO_GID": str(PERSON[1])}
    elif owner == "of the workspace":
        os.chown(workspace, *PERSON)
    pids = tmp_path / "pid"
    # What a client starts is this shell's own process in the end.
    line = f"echo $$ > {pids}; exec {' '.join(PROGRAM)} mcp --workspace {workspace}"
    server = StdioServerParameters(command="/bin/sh", args=["-c", line], env=environment)
    log = (tmp_path / "errors").open("w+")

    async def session() -> tuple[Any, Any, dict[str, str]]:
        from mcp.client.stdio import stdio_client

        async with Client(stdio_client(server, errlog=log), read_timeout_seconds=60) as client:
            listed = await client.call_tool("list_instances", {})
            refused = await client.call_tool("report", {"instance_id": "foreign"})
            return listed, refused, read_status(find_speaker(int(pids.read_text())))

    listed, refused, status = asyncio.run(session())
    with log:
        log.seek(0)
        assert log.read() == "", "nothing was to be imported any more"
    uid, gid = PERSON if owner != "root" else (65534, 65534)
    assert (status["Uid"].split(), status["Gid"].split(), status["Groups"]) == ([str(uid)] * 4, [str(gid)] * 4, "")
    assert status["NoNewPrivs"] == "1" and int(status["CapEff"], 16) == 0
    assert not listed.is_error and listed.structured_content == {"result": []}
    assert refused.is_error and "belongs to this workspace" in refused.content[0].text


@pytest.mark.parametrize(
    "request_line",
    [
        b"",
        b"{}",
        b"[1]",
        b"nothing",
        b'{"tool": "approve", "arguments": {}}',
        b'{"tool": "_enter", "arguments": {"instance_id": "a"}}',
        b'{"tool": "execute", "arguments": {"instance_id": "a", "command": "id"}}',
        b'{"tool": "execute", "arguments": {"instance_id": "a", "command": ["id"], "user": "root"}}',
        b'{"tool": "apply", "arguments": {"profile": "p.yaml", "keep": "yes"}}',
        b'{"tool": "report", "arguments": {"instance_id": ["a"]}}',
        b'{"tool": "plan", "arguments": [], "more": 1}',
    ],
)
def test_a_request_is_of_its_type(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_line: bytes
) -> None:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    assert b'"error": "' in answer(workspace, request_line)


_SERVER = """
import pathlib, signal, socket, sys, time
from ktrdr_vm.cli import mcp
# As the program itself does it: under nohup and in scripts it may be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
place = pathlib.Path(sys.argv[1])
def work(workspace, request):
    name = request.decode().strip()
    (place / f"{name}.began").touch()
    try:
        time.sleep(60 if name.startswith("long") else 0)
    except KeyboardInterrupt:
        try:
            time.sleep(1.5 if name.endswith("slow") else 0)
            (place / f"{name}.ended").touch()
        except KeyboardInterrupt:
            (place / f"{name}.cut").touch()
    return b"done\\n"
mcp.answer = work
mcp.Calls(socket.socket(fileno=int(sys.argv[2])), place).serve()
"""


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[socket.socket]:
    """The channel of a server whose long tools say in a file that they were ended in good order."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = [sys.executable, "-c", _SERVER, str(tmp_path), str(theirs.fileno())]
        server = subprocess.Popen(words, pass_fds=[theirs.fileno()])
    with ours:
        yield ours
    assert server.wait(30) == 0


def call(channel: socket.socket, name: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(channel, [b"\0"], [theirs.fileno()])
    with contextlib.suppress(BrokenPipeError):
        ours.sendall(name.encode() + b"\n")
    return ours


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, path.name
        time.sleep(0.02)


def test_calls_go_on_beside_one_another_and_end_when_they_are_given_up(calls: socket.socket, tmp_path: Path) -> None:
    first, second = call(calls, "long-1"), call(calls, "long-2")
    wait_for(tmp_path / "long-1.began")
    wait_for(tmp_path / "long-2.began")
    with call(calls, "short") as third, third.makefile("rb") as answered:
        assert answered.read() == b"done\n"
    first.close()
    wait_for(tmp_path / "long-1.ended")
    assert not (tmp_path / "long-2.ended").exists()
    # The speaker has ended, as it does with its client.
    calls.shutdown(socket.SHUT_RDWR)
    wait_for(tmp_path / "long-2.ended")
    second.close()


def test_a_call_that_is_ending_is_not_told_twice(calls: socket.socket, tmp_path: Path) -> None:
    """Its client cancels it and then leaves: what it takes down meanwhile is taken down whole."""
    first = call(calls, "long-slow")
    wait_for(tmp_path / "long-slow.began")
    first.close()
    time.sleep(0.5)
    calls.shutdown(socket.SHUT_RDWR)
    wait_for(tmp_path / "long-slow.ended")
    assert not (tmp_path / "long-slow.cut").exists()


def test_there_is_a_bound_on_calls_at_the_same_time(calls: socket.socket, tmp_path: Path) -> None:
    held = [call(calls, f"long-{number}") for number in range(command.MOST_CALLS)]
    for number in range(command.MOST_CALLS):
        wait_for(tmp_path / f"long-{number}.began")
    with call(calls, "short") as more:
        assert b"32 calls are running already" in more.recv(1000)
    for one in held:
        one.close()


def test_a_client_that_leaves_ends_its_call(workspace: Path, tmp_path: Path) -> None:
    """Over the protocol: the process of the call is gone soon after the client."""
    (workspace / "slow.py").write_text(
        "import sys, time, pathlib\n"
        "from ktrdr_vm.cli import main, mcp, mcp_tools\n"
        f"place = pathlib.Path({str(tmp_path)!r})\n"
        "def work(workspace, request):\n"
        "    (place / 'began').touch()\n"
        "    try:\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        (place / 'ended').touch()\n"
        "    return b'{\"value\": []}'\n"
        "mcp.answer = work\n"
        f"sys.argv[1:] = ['mcp', '--workspace', {str(workspace)!r}]\n"
        "main.main()\n"
    )
    environment = {**os.environ, "KTRDR_VM_HOME": str(tmp_path / "home")}
    server = StdioServerParameters(command=sys.executable, args=[str(workspace / "slow.py")], env=environment)

    async def session() -> None:
        async with Client(server, read_timeout_seconds=60) as client:
            asked = asyncio.create_task(client.call_tool("list_instances", {}))
            await asyncio.to_thread(wait_for, tmp_path / "began")
            asked.cancel()

    asyncio.run(session())
    wait_for(tmp_path / "ended")


@pytest.mark.parametrize("full", [True, False], ids=["of calls", "of processes"])
def test_a_call_that_is_refused_and_given_up_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, workspace: Path, full: bool
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with ours, theirs:
        calls = command.Calls(ours, workspace)
        monkeypatch.setattr(command, "MOST_CALLS", 0 if full else 1)
        monkeypatch.setattr(os, "fork", fork)
        connection, client = socket.socketpair()
        calls._start(connection)
        answered = client.recv(4096).decode()
        assert "calls are running already" in answered if full else "Resource temporarily unavailable" in answered
        connection, gone = socket.socketpair()
        gone.close()
        client.close()
        calls._start(connection)
        assert connection.fileno() == -1, "it is closed"
