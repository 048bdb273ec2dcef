"""A template that cannot be made leaves its console, and the error shows how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import GuestError, VmEndedError
from ktrdr_vm.templates.base import FAILED_CONSOLE, _explain_failure

ERROR = GuestError("the guest did not settle: its agent does not answer", where="ktrdr-template--x", hint="x")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"Linux\r\nKernel panic - not syncing: \x1b[31mVFS\r\n\r\n",
            "its console ends with: 'Kernel panic - not syncing: \\x1b[31mVFS'",
        ),
        (b"\n", "its console is empty"),
        (b"x" * 500, f"its console ends with: '{'x' * 200}'"),
    ],
)
def test_the_console_is_kept_and_its_end_is_shown(tmp_path: Path, content: bytes, says: str) -> None:
    place = tmp_path / ".new-x"
    place.mkdir()
    (place / "console.log").write_bytes(content)
    (tmp_path / FAILED_CONSOLE).write_text("of an earlier one, which was longer" * 100)
    found = _explain_failure(ERROR, place)
    assert found.message == f"{ERROR.message}; {says}"
    assert Path(found.where).read_bytes() == content and Path(found.where).stat().st_mode & 0o777 == 0o600


def test_a_vm_that_ended_is_still_told_apart(tmp_path: Path) -> None:
    (tmp_path / ".new-x").mkdir()
    (tmp_path / ".new-x" / "console.log").write_bytes(b"x")
    assert type(_explain_failure(VmEndedError("it ended", hint="x"), tmp_path / ".new-x")) is VmEndedError


def test_without_a_console_the_error_stays_as_it_is(tmp_path: Path) -> None:
    assert _explain_failure(ERROR, tmp_path / ".new-x") is ERROR
