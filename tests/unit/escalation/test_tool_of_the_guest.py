"""The program that an agent sends a request with: exit code 1 is the answer of a person, and nothing else."""

from __future__ import annotations

import http.client
import io
import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.host.paths import PROJECT

TOOL = PROJECT / "ktrdr_vm/guest/data/ktrdr-escalate"
WORDS = ["decision", "--blocked", "b", "--why", "w", "--recommendation", "r", "--decision", "d", "--option", "o"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    loader = SourceFileLoader("ktrdr_escalate", str(TOOL))
    spec = spec_from_loader("ktrdr_escalate", loader)
    assert spec is not None
    module: Any = module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    monkeypatch.setattr(module, "find_inbox", lambda: "http://gateway/v1/escalations")
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return module


class Inbox:
    """Takes what is sent, or fails as a connection that is cut."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self._failure = failure

    def open(self, request: Any, timeout: float) -> io.BytesIO:
        if self._failure is not None:
            raise self._failure
        self.sent.append(json.loads(request.data))
        return io.BytesIO(b'{"id": "e1", "kind": "decision", "state": "pending"}')


def run(tool: Any, monkeypatch: pytest.MonkeyPatch, inbox: Inbox, *words: str) -> int:
    monkeypatch.setattr(tool.urllib.request, "build_opener", lambda *_: inbox)
    monkeypatch.setattr(sys, "argv", ["ktrdr-escalate", *WORDS, *words])
    return int(tool.main())


@pytest.mark.parametrize("name", ["none", "."])
def test_evidence_that_cannot_be_read_is_no_denial(
    tool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    inbox = Inbox()
    assert run(tool, monkeypatch, inbox, "--evidence-file", str(tmp_path / name)) == 2
    assert "the evidence cannot be read" in capsys.readouterr().err and inbox.sent == []


def test_evidence_of_any_bytes_is_sent_within_its_bound(
    tool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inbox = Inbox()
    (tmp_path / "out").write_bytes(b"\xff" + b"x" * 100_000)
    assert run(tool, monkeypatch, inbox, "--evidence-file", str(tmp_path / "out")) == 0
    assert inbox.sent[0]["evidence"] == "\ufffd" + "x" * 15_999


@pytest.mark.parametrize("failure", [http.client.IncompleteRead(b""), http.client.BadStatusLine("x"), OSError("cut")])
def test_a_connection_that_is_cut_is_no_denial(tool: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tool, monkeypatch, Inbox(failure), "--evidence", "e")
    assert ended.value.code == 3
