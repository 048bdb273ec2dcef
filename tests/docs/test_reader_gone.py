"""`ktrdr-vm … | head`: whoever has read enough is no failed gate, which is what 1 means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "ktrdr_vm.cli.main"]


@pytest.mark.parametrize(
    "words", [["validate", "--schema"], ["events", "one"], ["report", "one", "--json"]], ids=" ".join
)
def test_a_reader_that_is_gone_is_no_failure(tmp_path: Path, words: list[str]) -> None:
    run = tmp_path / "runs" / "one" / "latest"
    run.mkdir(parents=True)
    (run / "events.jsonl").write_text('{"event": "x"}\n' * 10_000)
    (run / "report.json").write_text(
        '{"instance_id": "one", "run_id": "latest", "outcome": "passed", "exit_code": 0}\n'
    )
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "KTRDR_VM_HOME": str(tmp_path)}
    done = subprocess.run(
        [*PROGRAM, *words], stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=120, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("words", "code"), [(["runs"], 0), (["report", "one"], 2), (["images", "list"], 0)])
def test_what_nobody_can_read_on_standard_error_changes_no_exit_code(
    tmp_path: Path, words: list[str], code: int
) -> None:
    """On a full disk, and behind `2>&1 | head`, the remark that there are no runs ended `runs` with 1, and so did the
    message of each error, whatever its code."""
    environment = {**os.environ, "KTRDR_VM_HOME": str(tmp_path)}
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("wb") as full:
        for stream in (full.fileno(), writing):
            program = [sys.executable, "-m", "ktrdr_vm", *words]
            done = subprocess.run(
                program, stdout=subprocess.DEVNULL, stderr=stream, env=environment, timeout=120, check=False
            )
            assert done.returncode == code
    os.close(writing)
