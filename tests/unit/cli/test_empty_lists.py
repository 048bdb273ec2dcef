"""An empty list says so, and names the command that puts something into it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.monitoring import overview


@pytest.mark.parametrize(
    "words",
    ["list", "runs", "queue", "templates list", "images list", "escalations list", "escalations list --pending"],
)
def test_an_empty_list_names_the_next_command(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_VM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(overview, "list_rows", lambda *_: [])
    done = CliRunner().invoke(cli, words.split())
    assert done.exit_code == 0, done.output
    assert re.search(r"^no [a-z ]+\n  next: .*`ktrdr-[a-z]+", done.stderr, re.MULTILINE), done.stderr
    as_json = CliRunner().invoke(cli, [*words.split(), "--json"])
    assert as_json.exit_code == 0 and as_json.stderr == ""
