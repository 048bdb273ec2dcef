"""Paths of an attestation that somebody replaced: an error at once, and no command that waits or ends in a trace."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.attestation import check_attestation, make_attestation
from ktrdr_vm.host.paths import Home
from ktrdr_vm.policy.owner_policy import OwnerPolicy
from ktrdr_vm.report.model import GateResult, RunReport, Verification

COMMIT, AT = "c" * 40, "2026-01-01T00:00:00.000Z"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    judged = Verification("fresh", "one", "refs/heads/x", COMMIT, "passed", "passed", clean=True)
    gates = (GateResult("startability", "passed", AT, 1.0, stage="verification"),)
    report = RunReport(
        "one", "r1", "p", "sandbox", "a" * 64, "d" * 64, "passed", 0, AT, 1.0, base_commit="b" * 40, gates=gates,
        verification=judged,
    )  # fmt: skip
    home = Home(tmp_path)
    content = make_attestation(report, home, OwnerPolicy(), {"report.json": "0" * 64})
    assert content is not None
    (tmp_path / "a.json").write_text(content)
    return tmp_path / "a.json", home.attestation_public_key


def test_a_named_pipe_is_refused_and_not_waited_for(made: tuple[Path, Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    linked = tmp_path / "linked"
    linked.symlink_to(pipe)
    for path in (pipe, linked):
        for attestation, key in ((path, made[1]), (made[0], path)):
            with pytest.raises(UsageError, match="named pipe"):
                check_attestation(attestation, key)


def test_a_pipe_of_the_shell_is_read(made: tuple[Path, Path]) -> None:
    reading, writing = os.pipe()
    content = made[0].read_bytes()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert check_attestation(Path(f"/dev/fd/{reading}"), made[1]).commit == COMMIT
    finally:
        thread.join()
        os.close(reading)


@pytest.mark.parametrize("kind", ["circle", "missing", "file"])
def test_a_folder_that_is_none_is_an_error(made: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind == "circle":
        folder.symlink_to("folder")
    elif kind == "file":
        folder.write_text("")
    with pytest.raises(UsageError):
        check_attestation(*made, folder=folder)
