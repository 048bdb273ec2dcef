"""What the host keeps for itself, and what is bounded by count, age and size. Row 39 for what is not the journal."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ktrdr_vm.egress import disk_watch as space
from ktrdr_vm.egress.domain_control import DomainControl
from ktrdr_vm.egress.ledger import MAX_BYTES, Ledger, older
from ktrdr_vm.errors import BusyError, HostError
from ktrdr_vm.host import capacity, clock
from ktrdr_vm.host.capacity import DISK_ENOUGH, DISK_FLOOR, DISK_LAST, MEMORY_FLOOR, OVERHEAD, require_capacity
from ktrdr_vm.host.journal import Journal, explained, is_locked, locked, read_journal, remove_dead_locks
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.run_removal import KEPT_DAYS, collect_runs
from ktrdr_vm.instance.allocation import require_instance_limit


def has(monkeypatch: pytest.MonkeyPatch, *, memory: int = 1 << 20, disk: int = 1 << 20) -> None:
    """MiB that the host has."""
    monkeypatch.setattr(capacity, "read_available_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=disk << 20))


def test_what_would_take_the_hosts_own_is_refused_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2048 + OVERHEAD + MEMORY_FLOOR
    has(monkeypatch, memory=needed)
    require_capacity(tmp_path, 2048)
    has(monkeypatch, memory=needed - 1)
    with pytest.raises(HostError, match=f"{needed} are needed") as caught:
        require_capacity(tmp_path, 2048)
    assert "ktrdr-vm list" in caught.value.hint
    has(monkeypatch, disk=DISK_FLOOR)
    require_capacity(tmp_path, 2048)
    has(monkeypatch, disk=DISK_FLOOR - 1)
    with pytest.raises(HostError, match="reserved for the host") as caught:
        require_capacity(tmp_path, 2048)
    assert caught.value.where == str(tmp_path)


def test_a_host_has_room_for_as_many_as_its_owner_allows(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    for name in ("one", "two"):
        home.instance(name).directory.mkdir()
        Journal(home.instance(name).journal, name).save()
    require_instance_limit(home, "three", 3)
    require_instance_limit(home, "two", 2)  # it is there already
    with pytest.raises(HostError, match="allows 2"):
        require_instance_limit(home, "three", 2)


class FakeDomainControl(DomainControl):
    """A domain that is paused and resumed."""

    def __init__(self) -> None:
        super().__init__("ktrdr-one")
        self.state = "running"
        self.log: list[str] = []

    def find_state(self) -> str:
        return self.state

    def suspend(self) -> None:
        self.state = "paused"
        self.log.append("paused")

    def resume(self) -> None:
        self.state = "running"
        self.log.append("resumed")


def test_a_guest_stands_still_while_the_host_has_little_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = FakeDomainControl()
    watch = space.SpaceWatch(tmp_path, domain, Ledger(tmp_path / "ledger", "one"))
    for free, log in (
        (DISK_LAST, []),
        (DISK_LAST - 1, ["paused"]),
        (DISK_ENOUGH - 1, ["paused"]),
        (DISK_ENOUGH, ["paused", "resumed"]),
    ):
        has(monkeypatch, disk=free)
        watch.poll()
        assert domain.log == log, free
    said = [json.loads(line)["message"] for line in (tmp_path / "ledger").read_text().splitlines()]
    assert len(said) == 2 and f"the host has {DISK_LAST - 1} MiB of disk left" in said[0]
    # What somebody else paused is not resumed by it.
    domain.suspend()
    watch.poll()
    assert domain.state == "paused"


def test_a_ledger_on_a_full_disk_counts_and_says_so_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, "one", clock=lambda: 0.0)
    ledger.write("tls", "deny", name="before.test")
    file, full = ledger._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    ledger._file = full
    for _ in range(3):
        ledger.write("tls", "deny", name="lost.test")
    ledger.flush()
    ledger._file = file
    ledger.write("tls", "deny", name="after.test")
    ledger.close()
    full.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.get("name") for row in rows] == ["before.test", "after.test", "lost.test"]
    assert (rows[-1]["rule"], rows[-1]["count"]) == ("suppressed", 3)


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, "one", clock=lambda: 0.0)

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def fileno(self) -> int:
            return int(self.file.fileno())

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:10]))

    whole = ledger._file
    ledger._file = Half(whole)  # type: ignore[assignment]
    ledger.write("dns", "deny", name="cut.test")
    ledger._file = whole
    ledger.write("dns", "deny", name="next.test")
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["next.test"]


def test_a_ledger_is_two_files_of_a_size(tmp_path: Path) -> None:
    path, moment = tmp_path / "ledger", 0.0

    def clock() -> float:
        nonlocal moment
        moment += 1  # so that no line is left out for coming too fast
        return moment

    ledger = Ledger(path, "one", clock=clock)
    for number in range(5 * MAX_BYTES // 10_000):
        addresses = [f"198.51.100.{number % 250}"] * 64
        ledger.write("dns", "deny", name="x" * 255, message="m" * 1000, addresses=addresses, path="p" * 400)
        ledger.write("drop", "deny", address="a" * 64, rule="r" * 120, message="\x00" * 1000)
    ledger.close()
    assert older(path).exists()
    assert sum(file.stat().st_size for file in (path, older(path))) <= 2 * MAX_BYTES + (3 << 20)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger", "ledger.1", "ledger.totals"]


def test_old_evidence_is_collected_and_the_newest_of_what_lives_is_not(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    home.instance("living").directory.mkdir()
    for name in ("living", "gone", "young"):
        for number in (1, 2):
            run = home.run(name, f"run{number}")
            run.mkdir(parents=True)
            (run / "report.json").write_text("{}")
            age = 0 if name == "young" else KEPT_DAYS * 86400 + 1000 - number
            os.utime(run, (time.time() - age,) * 2)
        (home.runs / name / "latest").symlink_to("run2")
    planned = collect_runs(home, dry_run=True)
    assert {row["instance_id"] for row in planned} == {"gone/run1", "gone/run2", "living/run1"}
    assert (home.runs / "gone" / "run1").exists()
    assert [row["instance_id"] for row in collect_runs(home, dry_run=False)] == [row["instance_id"] for row in planned]
    assert sorted(path.name for path in home.runs.iterdir()) == ["living", "young"]
    assert sorted(path.name for path in (home.runs / "living").iterdir()) == ["latest", "run2"]
    assert collect_runs(home, dry_run=False) == []


def test_locks_of_nobody_go_and_those_of_somebody_stay(tmp_path: Path) -> None:
    (tmp_path / "dead.lock").write_text("pid 1\n")
    with locked(tmp_path / "living.lock", "it"):
        remove_dead_locks(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["living.lock"] and is_locked(tmp_path / "living.lock")
        with pytest.raises(BusyError), locked(tmp_path / "living.lock", "it"):
            raise AssertionError("two have it")


# -- a clock that jumps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jump", "boot", "expired"), [(10**7, "same", False), (-(10**7), "same", False), (10**7, "later", True)]
)
def test_a_time_to_live_follows_the_clock_of_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int, boot: str, expired: bool
) -> None:
    """The wall clock counts only where there is no other: after the host has booted again."""
    journal = Journal(tmp_path / "journal.json", "one")
    journal.live_for(3600)
    journal.save()
    found = read_journal(journal.path)
    assert found is not None and found == journal and not found.expired
    real = clock.datetime

    class Jumped(real):  # type: ignore[valid-type, misc]
        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return real.now(zone) + clock.timedelta(seconds=jump)

    monkeypatch.setattr(clock, "datetime", Jumped)
    if boot == "later":
        monkeypatch.setattr(clock, "read_boot_id", lambda: "another")
    assert found.expired is expired
    if boot == "same":
        monkeypatch.setattr(clock, "boottime", lambda: found.expires_second)
        assert found.expired


def test_an_earlier_journal_ends_by_the_wall_clock(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    for moment, expired in ((clock.later(-1), True), (clock.later(60), False), ("", False)):
        path.write_text(json.dumps({"schema_version": 2, "instance_id": "one", "expires_at": moment}))
        journal = read_journal(path)
        assert journal is not None and journal.expired is expired


def test_what_a_disk_refuses_has_a_place_and_a_way_on(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EIO):
        with pytest.raises(HostError) as caught, explained("/the/place"):
            raise OSError(number, os.strerror(number))
        assert caught.value.where == "/the/place" and os.strerror(number) in caught.value.message and caught.value.hint
    with pytest.raises(HostError) as caught, explained("/the/place"):
        (tmp_path / "nowhere" / "file").write_text("x")
    assert caught.value.where == str(tmp_path / "nowhere" / "file")
