"""The shims of examples/ci, called as the documentation of their runners says, with a stand-in for `ktrdr-vm`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "examples" / "ci"
FAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
case $1 in
  apply) pwd >> "$CALLS"; echo '{"outcome": "x"}'; exit "$FAKE_CODE" ;;
  report) echo "  page     $FAKE_RUN/report.html" ;;
  destroy) exit 2 ;;
esac
"""
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ktrdr-vm"
    program.write_text(FAKE)
    program.chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()
    (run / "junit.xml").write_text("<x/>")
    (run / "report.html").write_text("page")
    environment = {
        **os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "FAKE_CODE": "0", "FAKE_RUN": str(run),
        "KTRDR_BUILDS": str(tmp_path / "builds"), "KTRDR_EVIDENCE": str(tmp_path / "evidence"), "KTRDR_GIT_PROTOCOLS": "file",
        "SYSTEM_FAILURE_EXIT_CODE": "12", "BUILD_FAILURE_EXIT_CODE": "11", "CUSTOM_ENV_CI_JOB_ID": "77",
        "BUILD_EXIT_CODE_FILE": str(tmp_path / "exit-code"),
    }  # fmt: skip

    def call(name: str, *words: str, cwd: Path = tmp_path, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(CI / name), *words], capture_output=True, text=True, cwd=cwd, env=environment | changes
        )

    return call


@pytest.fixture
def repository(tmp_path: Path) -> dict[str, str]:
    root = tmp_path / "origin"
    environment = {
        **os.environ,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@x",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@x",
    }

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], check=True, capture_output=True, text=True, env=environment
        ).stdout.strip()

    root.mkdir()
    git("init", "--quiet")
    (root / "ktrdr.yaml").write_text("version: 1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    return {"CUSTOM_ENV_CI_REPOSITORY_URL": f"file://{root}", "CUSTOM_ENV_CI_COMMIT_SHA": git("rev-parse", "HEAD")}


@pytest.mark.parametrize(
    ("code", "expected"), [("0", 0), ("1", 11), ("6", 11), ("2", 12), ("3", 12), ("4", 12), ("5", 12), ("7", 12)]
)
def test_the_four_calls(code: str, expected: int, call: Call, repository: dict[str, str], tmp_path: Path) -> None:
    said = json.loads(call("gitlab-executor", "config").stdout)
    sources = Path(said["builds_dir"])
    assert said["driver"]["name"] == "ktrdr-vm"
    assert call("gitlab-executor", "prepare").returncode == 0
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\ntouch executed-on-the-host\n")
    for stage in ("prepare_script", "get_sources", "restore_cache", "download_artifacts"):
        done = call("gitlab-executor", "run", str(script), stage, **repository)
        assert done.returncode == 0, done.stderr
    assert (sources / "ktrdr.yaml").exists()
    done = call("gitlab-executor", "run", str(script), "step_script", FAKE_CODE=code, **repository)
    assert done.returncode == expected, done.stderr
    assert (tmp_path / "exit-code").read_text().strip() == code
    for stage in ("after_script", "archive_cache", "upload_artifacts_on_success", "cleanup_file_variables"):
        assert call("gitlab-executor", "run", str(script), stage, **repository).returncode == 0
    assert call("gitlab-executor", "cleanup").returncode == 0
    assert not sources.exists() and not list(tmp_path.rglob("executed-on-the-host"))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["doctor", "apply --instance-id ci-77 --json", str(sources), "destroy --force ci-77"]
    assert json.loads((tmp_path / "evidence" / "ci-77.json").read_text()) == {"outcome": "x"}


@pytest.mark.parametrize(
    "changes",
    [
        {"CUSTOM_ENV_CI_JOB_ID": "../x"},
        {"CUSTOM_ENV_CI_COMMIT_SHA": "--upload-pack=id"},
        {"CUSTOM_ENV_CI_REPOSITORY_URL": "ext::sh -c 'touch executed'"},
        {"CUSTOM_ENV_CI_REPOSITORY_URL": "--upload-pack=touch executed"},
    ],
)
def test_variables_of_a_job_start_nothing(
    changes: dict[str, str], call: Call, repository: dict[str, str], tmp_path: Path
) -> None:
    done = call("gitlab-executor", "run", "script", "get_sources", **{**repository, **changes})
    assert done.returncode == 12
    assert not list(tmp_path.rglob("executed"))


def test_a_place(call: Call, repository: dict[str, str], tmp_path: Path) -> None:
    assert call("gitlab-executor", "run", "x", "get_sources", **repository).returncode == 0
    call("gitlab-executor", "prepare", KTRDR_PLACE="homelab")
    call("gitlab-executor", "run", "x", "step_script", KTRDR_PLACE="homelab")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:2] == ["places check homelab", "apply --on homelab --instance-id ci-77 --json"]


@pytest.mark.parametrize("code", [0, 1, 5])
def test_the_plain_script(code: int, call: Call, tmp_path: Path) -> None:
    done = call("run-checks", "out", "profile.yaml", FAKE_CODE=str(code))
    assert done.returncode == code, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html", "junit.xml"}
    assert call("run-checks").returncode != 0
