"""Where AppArmor is on, forks need a line of the owner's; doctor says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm import doctor
from ktrdr_vm.host.paths import Home


def test_the_line_that_is_missing_is_named_and_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, enabled, local = Home(tmp_path / "home"), tmp_path / "enabled", tmp_path / "local"
    monkeypatch.setattr(doctor, "APPARMOR_ENABLED", enabled)
    monkeypatch.setattr(doctor, "APPARMOR_LOCAL", local)
    assert doctor._apparmor(home) is None
    enabled.write_text("N\n")
    assert doctor._apparmor(home) is None
    enabled.write_text("Y\n")
    check = doctor._apparmor(home)
    assert check is not None and check.state == "warning"
    local.write_text("# site\n")
    assert doctor._apparmor(home) == check
    # What it tells a person to add is what it looks for.
    line = check.fix.split("`")[1]
    assert str(home.templates) in line
    local.write_text(f"# site\n{line}\n")
    found = doctor._apparmor(home)
    assert found is not None and found.state == "ok"
