"""A user without an account, as in a container that runs as a number, and a group without a name, such as that of a
device of another host."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.package_sources import find_client_home
from ktrdr_vm.host.paths import find_home
from ktrdr_vm.monitoring import doctor_world
from ktrdr_vm.places.model import find_places_file
from ktrdr_vm.policy import load
from ktrdr_vm.users import find_account_folder, name_group, name_user

UID = 4242


def _missing(_number: int) -> NoReturn:
    raise KeyError("not found")


@pytest.fixture(autouse=True)
def nobody_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pwd, "getpwuid", _missing)
    monkeypatch.setattr(grp, "getgrgid", _missing)
    monkeypatch.setattr(os, "geteuid", lambda: UID)
    monkeypatch.setattr(os, "getuid", lambda: UID)
    for name in ("HOME", "KTRDR_VM_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_they_are_shown_by_their_numbers() -> None:
    assert (name_user(UID), name_group(UID), find_account_folder(UID)) == ("4242", "4242", "/nonexistent")
    assert find_client_home(UID) == "/nonexistent"


@pytest.mark.parametrize("find", [find_home, find_places_file, load.find_policy])
def test_without_a_home_directory_it_says_what_to_set(
    find: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "POLICY_PATH", str(tmp_path / "none"))
    with pytest.raises(HostError, match="has no home directory") as raised:
        find()
    assert raised.value.where == "uid 4242" and "set HOME" in raised.value.hint
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path) in str(find())


def test_doctor_names_a_group_of_kvm_that_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(0o660)
    monkeypatch.setattr(doctor_world, "KVM", device)
    monkeypatch.setattr(os, "access", lambda *_: False)
    check = doctor_world._kvm()
    assert check is not None and check.state == "warning"
    gid = device.stat().st_gid
    assert check.fix == (f"as root: groupadd -g {gid} kvm-of-host && usermod -aG kvm-of-host 4242; then log in again")
