"""Standard streams that the caller closed: nothing else becomes one of them, and no command ends in a trace."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ktrdr_vm.cli.connect import parse_forward
from ktrdr_vm.cli.entry import open_streams
from ktrdr_vm.errors import UsageError


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_is_opened_and_no_file_takes_its_number(number: int, tmp_path: Path) -> None:
    name = ("stdin", "stdout", "stderr")[number]
    kept, stream = os.dup(number), getattr(sys, name)
    try:
        os.close(number)
        setattr(sys, name, None)
        open_streams()
        opened = os.readlink(f"/proc/self/fd/{number}")
        with (tmp_path / "evidence").open("w") as file:
            taken = file.fileno()
        usable = getattr(sys, name) is not None
    finally:
        os.dup2(kept, number)
        os.close(kept)
        setattr(sys, name, stream)
    assert (opened, usable) == ("/dev/null", True)
    assert taken > 2


@pytest.mark.parametrize("text", ["\u00b2", "\u0663", "\u00b2:80:80:80", "9" * 5000, "1:\u00b2", ":", "0", "-1", "80:"])
def test_a_port_has_digits_only(text: str) -> None:
    with pytest.raises(UsageError):
        parse_forward(text)
