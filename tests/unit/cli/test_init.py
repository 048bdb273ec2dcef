"""`init` writes what does not exist, shows what differs, and overwrites only if it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import UsageError


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "Makefile").write_text("test:\n\ttrue\n")
    monkeypatch.chdir(tmp_path / "src")
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["init", *words], standalone_mode=False)


def test_it_writes_to_the_top_and_a_second_time_changes_nothing(top: Path) -> None:
    first = run()
    assert first.exception is None, first.output
    assert "make test" in (top / "playbooks/checks.yaml").read_text()
    written = {path: path.read_bytes() for path in (top / "ktrdr.yaml", top / "playbooks/checks.yaml")}
    second = run()
    assert "unchanged" in second.stdout and all(path.read_bytes() == content for path, content in written.items())
    validated = CliRunner().invoke(cli, ["validate"], standalone_mode=False)
    assert validated.return_value == 0, validated.output


def test_a_dry_run_shows_the_difference_and_writes_nothing(top: Path) -> None:
    shown = run("--dry-run").stdout
    assert "--- /dev/null\n+++ b/ktrdr.yaml\n" in shown and "+version: 1\n" in shown
    assert not (top / "ktrdr.yaml").exists() and not (top / "playbooks").exists()
    run()
    assert run("--dry-run").stdout == ""
    (top / "ktrdr.yaml").write_text((top / "ktrdr.yaml").read_text().replace("memory: 2GiB", "memory: 6GiB"))
    shown = run("--dry-run").stdout
    assert (
        "-resources: {vcpus: 2, memory: 6GiB, disk: 20GiB}\n+resources: {vcpus: 2, memory: 2GiB, disk: 20GiB}\n"
        in shown
    )


def test_it_overwrites_only_with_force_and_then_all_or_nothing(top: Path) -> None:
    (top / "ktrdr.yaml").write_text("mine\n")
    refused = run()
    assert isinstance(refused.exception, UsageError)
    assert (
        "ktrdr.yaml exists" in str(refused.exception)
        and "--dry-run" in refused.exception.hint
        and "--force" in refused.exception.hint
    )
    assert (top / "ktrdr.yaml").read_text() == "mine\n" and not (top / "playbooks").exists()
    assert run("--force").exception is None
    assert (top / "ktrdr.yaml").read_text().startswith("# Written by `ktrdr-vm init`")


def test_it_prints_json(top: Path) -> None:
    documents = json.loads(run("--json").stdout)
    assert [(one["file"], one["state"]) for one in documents] == [
        ("ktrdr.yaml", "written"),
        ("playbooks/checks.yaml", "written"),
    ]
    assert "+version: 1" in documents[0]["difference"]


def test_a_link_is_not_written_through(top: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "target"
    outside.write_text("theirs\n")
    (top / "ktrdr.yaml").symlink_to(outside)
    assert isinstance(run().exception, UsageError)
    assert outside.read_text() == "theirs\n"


def test_outside_of_a_repository_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stopped = run().exception
    assert isinstance(stopped, UsageError) and "not in a Git repository" in str(stopped) and "git init" in stopped.hint


def test_a_bare_repository_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`git init` in it, which a folder outside of a repository needs, would be wrong."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "HEAD").write_text("ref: refs/heads/main\n")
    monkeypatch.chdir(tmp_path)
    stopped = run().exception
    assert isinstance(stopped, UsageError) and "bare repository" in str(stopped) and "worktree" in stopped.hint
