"""Symbolic modes are those of ansible-core: several operators, classes of users, the umask and the special bits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktrdr_vm.gates.modules.guest_side.files import Refused, wanted_mode
from ktrdr_vm.gates.option_checks import _MODE


@pytest.mark.parametrize(
    ("now", "mode", "wanted"),
    [
        (0o644, "u+x", 0o744),
        (0o1644, "o=", 0o640),
        (0o6755, "u=rwx,g=rx", 0o755),
        (0o644, "+w", 0o644),
        (0o444, "+w", 0o644),
        (0o666, "-w", 0o466),
        (0o666, "a-w", 0o444),
        (0o640, "u=rw-w+X", 0o440),
        (0o740, "u=rw-x+X,go+X", 0o640),
        (0o755, "g+s", 0o2755),
        (0o755, "o+s", 0o755),
        (0o755, "u+t", 0o755),
        (0o755, "o+t", 0o1755),
        (0o750, "o=g", 0o755),
        (0o644, "a=", 0o000),
    ],
)
def test_a_symbolic_mode_changes_what_it_names(tmp_path: Path, now: int, mode: str, wanted: int) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(now)
    before = os.umask(0o022)
    try:
        assert oct(wanted_mode(mode, str(file))) == oct(wanted)
    finally:
        os.umask(before)
    assert _MODE.fullmatch(mode)


@pytest.mark.parametrize("mode", ["ua+x", "x", "u+q", "z=r"])
def test_what_is_no_mode_is_refused(tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused):
        wanted_mode(mode, str(tmp_path / "file"))
    assert not _MODE.fullmatch(mode)
