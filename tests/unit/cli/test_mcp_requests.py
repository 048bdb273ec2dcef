"""What an MCP client may send and no tool can do is an answer with the reason, never the end of the call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.cli.mcp_tools import answer, encode


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "state"))


def ask(tmp_path: Path, request: bytes) -> str:
    return str(json.loads(answer(tmp_path, request))["error"])


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\0"])
@pytest.mark.parametrize("tool", ["plan", "apply", "execute", "gate", "push", "report", "revision", "escalations"])
def test_text_that_no_path_can_be(tmp_path: Path, tool: str, text: str) -> None:
    arguments: dict[str, Any] = {"profile": text} if tool in ("plan", "apply") else {"instance_id": text}
    if tool == "execute":
        arguments["command"] = ["x", text]
    if tool == "gate":
        arguments["name"] = text
    assert "must be text without NUL" in ask(tmp_path, json.dumps({"tool": tool, "arguments": arguments}).encode())


@pytest.mark.parametrize("timeout", ["NaN", "Infinity", "-1", "0", "86401"])
def test_a_time_that_no_clock_keeps(tmp_path: Path, timeout: str) -> None:
    arguments = f'{{"instance_id": "one", "command": ["x"], "timeout": {timeout}}}'
    assert "timeout: must be more than 0" in ask(tmp_path, f'{{"tool": "execute", "arguments": {arguments}}}'.encode())


@pytest.mark.parametrize(
    "request_", [b"", b"[]", b"{", b"\xff", b"[" * 200_000, b'{"tool": [], "arguments": {}}', b"1" * 5000]
)
def test_what_is_no_request(tmp_path: Path, request_: bytes) -> None:
    assert "names no known tool" in ask(tmp_path, request_)


@pytest.mark.parametrize("text", ["\x1b[2J", "\u202e", "\x7f", "\u2028"])
def test_an_error_shows_control_characters_of_the_client_as_escapes(tmp_path: Path, text: str) -> None:
    """Hosts of agents print errors of tools to a terminal."""
    for tool, name in (("revision", "instance_id"), ("plan", "profile")):
        said = ask(tmp_path, json.dumps({"tool": tool, "arguments": {name: f"a{text}b"}}).encode())
        assert text not in said and "a\\" in said


def test_half_a_surrogate_pair_in_a_value_is_no_end_of_the_answer() -> None:
    """The name of an artifact is any bytes of the guest; an answer with half a pair cannot be sent as UTF-8, and the
    report of the run could not be read over MCP."""
    document = json.loads(encode({"value": {"artifacts": [{"source": "/a/\udcff", "path": "é\n\u2028"}]}}))
    assert document["value"]["artifacts"] == [{"source": "/a/?", "path": "é\n\u2028"}]


@pytest.mark.parametrize("name", ["a" * 900_000, "b/" * 100_000, "../" * 100_000])
def test_an_error_does_not_repeat_a_name_of_any_length(tmp_path: Path, name: str) -> None:
    """A client that named 900,000 characters had all of them in the answer, which its agent then read."""
    said = ask(tmp_path, json.dumps({"tool": "plan", "arguments": {"profile": name}}).encode())
    assert len(said) < 20_000 and said.partition("\nnext: ")[2]
