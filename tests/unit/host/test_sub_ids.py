"""The ids of a world, from /etc/subuid and /etc/subgid."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import process, sub_ids
from ktrdr_vm.host.process import Completed
from ktrdr_vm.host.sub_ids import MAPPED, Range, find_kvm_group, find_map, make_ranges, require_user_namespaces

PERSON, GROUP = 4001, 4002


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    users, groups = tmp_path / "subuid", tmp_path / "subgid"
    monkeypatch.setattr(sub_ids, "_SUBUID", users)
    monkeypatch.setattr(sub_ids, "_SUBGID", groups)
    monkeypatch.setattr(sub_ids, "name_user", lambda uid: "alice" if uid == PERSON else str(uid))
    return users, groups


def test_the_person_is_root_and_each_other_id_a_subordinate_one(files: tuple[Path, Path]) -> None:
    files[0].write_text("bob:100000:65536\nalice:165536:65536\n")
    files[1].write_text(f"{PERSON}:231072:65536\n")
    users, groups = find_map(PERSON, GROUP)
    assert users == [Range(0, PERSON, 1), Range(1, 165536, MAPPED)]
    assert groups == [Range(0, GROUP, 1), Range(1, 231072, MAPPED)]


@pytest.mark.parametrize("itself", [1, 108, 65536])
def test_the_group_of_kvm_is_itself_and_no_other_id_moves(itself: int) -> None:
    inside = {}
    for one in make_ranges(GROUP, 200_000, itself):
        for offset in range(one.count):
            assert one.inside + offset not in inside
            inside[one.inside + offset] = one.outside + offset
    assert len(inside) == MAPPED + 1 and len(set(inside.values())) == MAPPED + 1
    assert inside[0] == GROUP and inside[itself] == itself
    assert all(outside == 199_999 + number for number, outside in inside.items() if number not in (0, itself))


def test_the_group_of_kvm_needs_a_line(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "kvm"
    node.touch()
    monkeypatch.setattr(sub_ids, "KVM", node)
    group = node.stat().st_gid or 1
    files[1].write_text("alice:165536:65536\n")
    assert find_kvm_group(PERSON) is None
    files[1].write_text(f"alice:165536:65536\nalice:{group}:1\n")
    assert find_kvm_group(PERSON) == (node.stat().st_gid or None)


@pytest.mark.parametrize(
    "line", ["", "alice:100000:1000\n", "bob:100000:65536\n", "alice:x:65536\n", "alice 100000 65536\n"]
)
def test_without_a_range_the_command_that_gives_a_free_one_is_named(files: tuple[Path, Path], line: str) -> None:
    files[0].write_text(line)
    files[1].write_text("carol:300000:65536\nalice:165536:65536\n")
    with pytest.raises(HostError, match="alice has no 65536 subordinate ids") as caught:
        find_map(PERSON, GROUP)
    assert "usermod --add-subuids 365536-431071 --add-subgids 365536-431071 alice" in caught.value.hint


def test_namespaces_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Completed(("unshare",), 1, b"", b"unshare: unshare failed: Operation not permitted\n")
    monkeypatch.setattr(process, "run", lambda *_, **__: refused)
    with pytest.raises(HostError, match=r"refuses user namespaces to this process: .*Operation not permitted") as met:
        require_user_namespaces()
    assert "pivot_root" in met.value.hint and "setns" in met.value.hint
