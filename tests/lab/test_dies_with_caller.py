"""A program that makes something ends with its caller; else it would make it behind the `gc` that follows a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from laboratory.recorder import wait_until

from ktrdr_vm.errors import KtrdrError, ProvisionError
from ktrdr_vm.host import git, process

_CALL = "import sys; from ktrdr_vm.host import process; process.run(eval(sys.argv[1]), timeout=60)"


def find(marker: str) -> list[int]:
    """The sleeping programs, and not the caller, whose arguments also have the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"sleep") and marker.encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("dies", [True, False])
def test_it_ends_with_its_caller_and_only_then(dies: bool) -> None:
    marker = f"0.{uuid.uuid4().int}"
    words = [*(process.DIES_WITH_CALLER if dies else ()), "sleep", "30", marker]
    caller = subprocess.Popen([sys.executable, "-c", _CALL, repr(words)])
    wait_until(lambda: bool(find(marker)), "the program runs", 30)
    caller.kill()
    assert caller.wait(10) == -signal.SIGKILL
    if dies:
        wait_until(lambda: not find(marker), "the program has ended", 5)
        return
    (pid,) = find(marker)
    subprocess.run(["kill", str(pid)], check=True)


@pytest.mark.parametrize("prefix", [(), process.DIES_WITH_CALLER])
def test_an_error_names_the_program_that_does_the_work(prefix: tuple[str, ...]) -> None:
    with pytest.raises(KtrdrError, match=r"nft failed with exit code") as caught:
        process.run([*prefix, "nft", "-f", "/nonexistent"], timeout=30)
    assert caught.value.where == "nft -f /nonexistent"
    with pytest.raises(KtrdrError, match="the program no-such-program is not installed"):
        process.run([*prefix, "no-such-program"], timeout=30)


@pytest.mark.parametrize("owner", [(0, 0), (12345, 12345)])
def test_an_error_of_git_names_git_and_its_command(owner: tuple[int, int]) -> None:
    with pytest.raises(ProvisionError, match=r"^git log: git failed with exit code 128: fatal") as caught:
        git._run([*git.BOUNDS, "git", "log"], owner, cwd=Path("/"), environment=git.ENVIRONMENT, check=True)
    assert caught.value.where == "git log"


def test_a_limit_that_ends_a_program_is_named(tmp_path: Path) -> None:
    words = ["dd", "if=/dev/zero", f"of={tmp_path / 'file'}", "count=1"]
    with pytest.raises(ProvisionError, match=r": dd was ended by SIGXFSZ \(its limit of the size of a file\): "):
        process.run(["prlimit", "--fsize=10", "--", *words], timeout=9)
