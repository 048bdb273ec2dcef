"""Where libvirt confines QEMU by AppArmor, a domain's own profile lets it open its template, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import confinement
from ktrdr_vm.host.confinement import find_fork_obstacle, has_profile, make_memory_rules, remove_profile, write_profile
from ktrdr_vm.monitoring import doctor
from tests.fakes.libvirt import FakeLibvirt

UUID = "0b4c2f8e-6f5a-4f0e-9a4e-0d8a3d6f1b2c"
TEMPLATE = """#
# This profile is for the domain whose UUID matches this file.
#

#include <tunables/global>

profile LIBVIRT_TEMPLATE flags=(attach_disconnected) {
  #include <abstractions/libvirt-qemu>
}
"""


CONFINING, OPEN = FakeLibvirt(models=("apparmor", "dac")), FakeLibvirt()


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "libvirt"
    place.mkdir()
    (place / "TEMPLATE.qemu").write_text(TEMPLATE)
    monkeypatch.setattr(confinement, "PROFILES", place)
    return place


def test_the_profile_is_libvirts_with_the_lines_of_one_domain(profiles: Path) -> None:
    write_profile(CONFINING, UUID, make_memory_rules("/h/templates/k/memory", "/h/templates/k/state"))
    made = profiles / f"libvirt-{UUID}"
    assert made.stat().st_mode & 0o777 == 0o644
    assert made.read_text() == TEMPLATE.replace("LIBVIRT_TEMPLATE", f"libvirt-{UUID}").replace(
        "\n}\n",
        '\n  "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size" r,\n  "/h/templates/k/memory" rwk,\n  "/h/templates/k/state" r,\n'
        + f"  #include <libvirt/libvirt-{UUID}.files>\n}}\n",
    )


def test_only_a_template_that_is_made_may_write_its_state() -> None:
    assert '"/s" rw,' in make_memory_rules("/m", "/s", freeze=True)
    assert '"/s" r,' in make_memory_rules("/m", "/s")


def test_a_fork_that_only_reads_its_template_may_not_write_to_it() -> None:
    assert make_memory_rules("/m", "/s", readonly=True)[0] == '"/m" rk,'
    assert make_memory_rules("/m", "/s", readonly=True, freeze=True)[0] == '"/m" rwk,'


def test_where_nothing_is_confined_nothing_is_written(profiles: Path) -> None:
    write_profile(OPEN, UUID, make_memory_rules("/m", "/s"))
    assert not has_profile(UUID)


def test_what_libvirt_leaves_for_ever_goes_too(profiles: Path) -> None:
    other = profiles / "libvirt-11111111-6f5a-4f0e-9a4e-0d8a3d6f1b2c"
    other.touch()
    for name in (f"libvirt-{UUID}", f"libvirt-{UUID}.files", f".libvirt-{UUID}.new"):
        (profiles / name).touch()
        assert has_profile(UUID)
        remove_profile(UUID)
        assert not has_profile(UUID) and not (profiles / name).exists()
    remove_profile(UUID)
    assert other.exists()


@pytest.mark.parametrize("text", [None, "", "profile something {\n}\n", TEMPLATE.replace("}", "")])
def test_doctor_says_beforehand_what_apply_would_meet(
    profiles: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "Libvirt", lambda: CONFINING)
    assert find_fork_obstacle(CONFINING) == ""
    check = doctor._apparmor()
    assert check is not None and check.state == "ok"
    if text is None:
        (profiles / "TEMPLATE.qemu").unlink()
    else:
        (profiles / "TEMPLATE.qemu").write_text(text)
    said = find_fork_obstacle(CONFINING)
    assert said.startswith("AppArmor denies QEMU the memory files of templates: ") and "TEMPLATE.qemu" in said
    check = doctor._apparmor()
    assert check is not None and check.state == "warning" and said in check.detail
    with pytest.raises(HostError, match=r"TEMPLATE\.qemu"):
        write_profile(CONFINING, UUID, ())
    assert not has_profile(UUID)


def test_a_host_without_apparmor_has_no_obstacle(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (profiles / "TEMPLATE.qemu").unlink()
    monkeypatch.setattr(doctor, "Libvirt", lambda: OPEN)
    assert find_fork_obstacle(OPEN) == "" and doctor._apparmor() is None
