"""Files among the escalations that this program did not write: they are none, and the others are shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.escalation.packet import parse_packet
from ktrdr_vm.escalation.store import Answer, EscalationStore
from ktrdr_vm.host.paths import Home

PACKET = {
    "kind": "network", "request": {"host": "a.example", "ports": [443]}, "seconds": 60,
    "blocked": "b", "why": "w", "options": ["o"], "recommendation": "r", "decision": "d", "evidence": "e",
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> EscalationStore:
    made = EscalationStore(tmp_path / "escalations", "one")
    for each in ("first", "second"):
        made.submit(parse_packet({**PACKET, "decision": each}))
    made.answer("e2", "approved", Answer("me", "because", "2026-01-01T00:00:00.000Z", seconds=60, ends=("boot", 5.0)))
    return made


def change(store: EscalationStore, name: str, **fields: Any) -> None:
    path = store.directory / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


WRONG: list[dict[str, Any]] = [
    {"id": 5}, {"id": "e1"}, {"id": None}, {"id": "x"}, {"instance_id": "two"}, {"instance_id": []}, {"state": []},
    {"state": "open"}, {"state": "pending"}, {"received_at": 1}, {"packet": []}, {"packet": {"kind": 1}}, {"answer": 5},
    {"answer": None}, {"answer": {}},
]  # fmt: skip


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_a_wrong_field_is_no_escalation_and_hides_no_other(store: EscalationStore, fields: dict[str, Any]) -> None:
    change(store, "e2", **fields)
    assert [one.id for one in store.list()] == ["e1"]


@pytest.mark.parametrize(
    "answer",
    [
        {"by": 5}, {"reason": None}, {"at": []}, {"request": 5}, {"seconds": "x"}, {"seconds": True}, {"waiting": "yes"},
        {"ends": ["boot"]}, {"ends": ["boot", "x"]}, {"ends": [5, 5.0]}, {"ends": ["boot", 1e999]}, {"ends": 5},
        {"source": {"env": 5}}, {"source": 5}, {"other": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_answer_is_none(store: EscalationStore, answer: dict[str, Any]) -> None:
    """An expiry of another type ended `list`, `top` and the guard when it was compared with the clock."""
    stored = json.loads((store.directory / "e2.json").read_text())["answer"]
    change(store, "e2", answer=stored | answer)
    assert [one.to_json()["state"] for one in store.list()] == ["pending"]


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "nul", "huge", "deep", "empty"])
def test_what_is_no_file_of_it_is_not_waited_for_and_not_followed(store: EscalationStore, kind: str) -> None:
    path, elsewhere = store.directory / "e2.json", store.directory / "elsewhere"
    path.rename(elsewhere)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(elsewhere)
        case "folder":
            path.mkdir()
        case "huge":
            path.write_bytes(b" " * (2 << 20) + elsewhere.read_bytes())
        case _:
            path.write_bytes({"nul": b"\0" * 100, "deep": b"[" * 100_000, "empty": b""}[kind])
    assert [one.id for one in store.list()] == ["e1"]


def test_what_was_stored_is_read_back(store: EscalationStore) -> None:
    assert [(one.id, one.state) for one in store.list()] == [("e1", "pending"), ("e2", "approved")]


def test_what_is_left_out_is_named(
    store: EscalationStore, write_instance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "state"))
    home = Home(tmp_path / "state")
    write_instance(home, "one")
    store.directory.rename(home.instance("one").escalations)
    kept = EscalationStore(home.instance("one").escalations, "one")
    assert kept.find_unread() == set()
    change(kept, "e2", state="open")
    for words in (["list", "one"], ["list"], ["list", "one", "--json"]):
        said = CliRunner().invoke(cli, ["escalations", *words])
        assert (said.exit_code, "e2" in said.stdout) == (0, False)
        assert "note: e2 of one is left out" in said.stderr and "e1" in said.stdout


@pytest.mark.parametrize("kind", ["pipe", "nul"])
def test_an_instance_without_a_readable_journal_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """`escalations list` said that there are none, and waited for a pipe in the place of the journal."""
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path))
    journal = Home(tmp_path).instance("one").journal
    journal.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(journal)
    else:
        journal.write_bytes(b"\0" * 100)
    said = CliRunner().invoke(cli, ["escalations", "list"])
    assert (said.exit_code, said.stdout) == (0, "")
    assert "note: one is left out: its journal cannot be read" in said.stderr
