"""The journal survives what a disk can do, and the lock says who has it. Rows 39 and 40."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import BusyError, HostError, ProvisionError
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.journal import Journal, is_locked, locked, read_journal


def make(path: Path, **more: Any) -> Journal:
    journal = Journal(path=path, instance_id="one", slot=3, plan={"a": 1}, **more)
    journal.save()
    return journal


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    journal = make(path)
    journal.intend("overlay")
    journal.intend("seed")
    journal.confirm("overlay")
    assert read_journal(path) == journal
    assert journal.resources == {"overlay": "present", "seed": "intended"}
    journal.strike("overlay")
    journal.strike("never there")
    found = read_journal(path)
    assert found is not None and found.resources == {"seed": "intended"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal.json"]


@pytest.mark.parametrize("call", ["open", "fdopen", "fchmod", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "journal.json"
    journal = make(path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path if call == "rename" else os, call, fail)
    with pytest.raises(HostError) as caught:
        journal.intend("overlay")
    monkeypatch.undo()
    assert os.strerror(number) in caught.value.message
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal.json"]


def test_a_write_that_is_cut_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes half of the bytes and is then full."""
    path = tmp_path / "journal.json"
    make(path)
    before = path.read_bytes()
    real = os.fdopen

    def half(*words: Any, **more: Any) -> Any:
        file = real(*words, **more)

        class Cut:
            def __enter__(self) -> Cut:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                file.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Cut()

    monkeypatch.setattr(os, "fdopen", half)
    with pytest.raises(HostError):
        write_durably(path, b"x" * 10_000)
    assert path.read_bytes() == before


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".journal.json.new").symlink_to(victim)
    with pytest.raises(HostError):
        write_durably(tmp_path / "journal.json", b"theirs")
    assert victim.read_text() == "mine"


def test_no_journal_is_none_and_a_damaged_one_is_never_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    assert read_journal(path) is None
    for damaged in (b"", b"{", b"[]", b"null", b'{"schema_version": 1, "surprise": 2}', b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(ProvisionError, match="damaged"):
            read_journal(path)


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    make(path)
    content = json.loads(path.read_text()) | {"schema_version": 99}
    path.write_text(json.dumps(content))
    with pytest.raises(HostError, match="99"):
        read_journal(path)


# -- locks -------------------------------------------------------------------------------------------------------------


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one.lock"
    with locked(path, "the instance one"):
        assert is_locked(path)
        with pytest.raises(BusyError) as caught, locked(path, "the instance one"):
            raise AssertionError("two have it")
        assert f"pid {os.getpid()}" in caught.value.message
    assert not path.exists() and not is_locked(path)


def test_a_file_without_a_holder_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "one.lock"
    path.write_text("pid 1\n")
    assert not is_locked(path)
    with locked(path, "one"):
        assert path.read_text() == f"pid {os.getpid()}\n"


def test_it_is_released_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "one.lock"
    with pytest.raises(RuntimeError), locked(path, "one"):
        raise RuntimeError
    with locked(path, "one"):
        pass


def test_those_who_wait_come_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "slots.lock"
    inside, most, order = 0, 0, []
    gate = threading.Barrier(8)

    def work(number: int) -> None:
        nonlocal inside, most
        gate.wait(10)
        with locked(path, "slots", wait=True):
            inside += 1
            most = max(most, inside)
            order.append(number)
            inside -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (sorted(order), most) == (list(range(8)), 1)
    assert not path.exists()


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "one.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError), locked(tmp_path / "one.lock", "one"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("moment", ["soon", "2026-01-01", "2026-01-01T00:00:00"])
def test_an_expiry_that_is_no_time_is_damage(tmp_path: Path, moment: str) -> None:
    """Or it would end every `list` and `gc`, which compare it with now."""
    make(tmp_path / "journal.json", expires_at=moment)
    with pytest.raises(ProvisionError, match="damaged"):
        read_journal(tmp_path / "journal.json")
