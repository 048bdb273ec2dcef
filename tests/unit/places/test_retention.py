"""Requests are removed a fixed time after their end, never before it, and with what only they had."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.host.run_removal import KEPT_DAYS
from ktrdr_vm.places.engine import mark_started
from ktrdr_vm.places.filenames import BATCHES, INCOMING, LEASE, REQUESTS
from ktrdr_vm.places.request import BUNDLE, Request, SentFile, make_request_id
from ktrdr_vm.places.request_state import write_outcome
from ktrdr_vm.places.retention import SILENT_DAYS, collect_requests
from ktrdr_vm.places.spool import Spool

Make = Callable[..., Request]
Write = Callable[[Request], Path]
CONTENT = b"# v2 git bundle\n" + b"1" * 40 + b" refs/heads/main\n\nPACK"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def receive(spool: Spool, make_request: Make, write_request: Write) -> Callable[[], Path]:
    """Receives a request with a bundle, which all share; the folder that it has in the spool."""

    def receive() -> Path:
        sent = SentFile(BUNDLE, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
        request = make_request(commit="1" * 40, files=(*make_request().files, sent), attempts=2)
        folder = write_request(request)
        if BUNDLE not in (spool.begin(request.request_id, {BUNDLE: sent.sha256}) or {}):
            (folder / BUNDLE).write_bytes(CONTENT)
        spool.receive_folder(folder, request.request_id)
        mark_started(spool.request(request.request_id), kind="job", job="7")
        return spool.request(request.request_id)

    return receive


def end(folder: Path, exit_code: int = 0) -> None:
    attempt = folder / "attempts" / "1"
    attempt.mkdir(parents=True)
    (attempt / LEASE).write_text("{}\n")
    write_outcome(attempt, {"outcome": "passed", "exit_code": exit_code, "run_id": ""})


def age(folder: Path, days: float) -> None:
    """Make a folder and everything in it `days` old."""
    then = time.time() - days * 86400
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then), follow_symlinks=False)


def collect(spool: Spool) -> list[str]:
    """The names of the requests that are removed; a dry run names the same and removes nothing."""
    planned = collect_requests(spool, dry_run=True)
    assert {row["action"] for row in planned} <= {"would remove"}
    assert all(any(spool.root.glob(f"*/*{row['instance_id']}")) for row in planned)
    rows = collect_requests(spool, dry_run=False)
    assert {row["action"] for row in rows} <= {"removed"}
    assert [row["instance_id"] for row in rows] == [row["instance_id"] for row in planned]
    return [row["instance_id"] for row in rows]


def test_one_that_ended_is_removed_after_its_time(spool: Spool, receive: Callable[[], Path]) -> None:
    old, young = receive(), receive()
    for folder, days in ((old, KEPT_DAYS + 1), (young, KEPT_DAYS - 1)):
        end(folder)
        age(folder, days)
    assert collect(spool) == [old.name]
    assert spool.list_ids() == [young.name] and len(spool.bundles.list_offers()) == 1
    age(young, KEPT_DAYS + 1)
    assert collect(spool) == [young.name]
    assert list((spool.root / REQUESTS).iterdir()) == [] and list((spool.root / "bundles").iterdir()) == []


def test_one_that_was_cancelled_while_it_waited(spool: Spool, receive: Callable[[], Path]) -> None:
    folder = receive()
    age(folder, KEPT_DAYS + 1)
    spool.end_early(folder.name)
    assert collect(spool) == [], "it ended now"
    age(folder, KEPT_DAYS + 1)
    assert collect(spool) == [folder.name]


def test_one_that_did_not_end_is_kept(spool: Spool, receive: Callable[[], Path]) -> None:
    waiting, retried, running = receive(), receive(), receive()
    end(retried, exit_code=3)
    end(running)
    (running / "attempts/1/outcome.json").unlink()
    for folder in (waiting, retried, running):
        age(folder, SILENT_DAYS - 1)
    os.utime(running / "attempts/1" / LEASE)
    assert collect(spool) == []
    for folder in (waiting, retried, running):
        age(folder, SILENT_DAYS + 1)
    os.utime(running / "attempts/1" / LEASE)
    assert sorted(collect(spool)) == sorted([waiting.name, retried.name]), "its scheduler has forgotten them"


def test_one_of_another_version_is_kept_for_longer(spool: Spool, receive: Callable[[], Path]) -> None:
    folder = receive()
    (folder / "request.json").write_text('{"schema_version": 99}')
    age(folder, KEPT_DAYS + 1)
    assert collect(spool) == []
    age(folder, SILENT_DAYS + 1)
    assert collect(spool) == [folder.name]


def test_what_was_received_in_part(spool: Spool) -> None:
    old, young = make_request_id(), make_request_id()
    for name in (old, young):
        spool.begin(name)
        spool.put(name, BUNDLE, 0, CONTENT)
    age(spool.root / INCOMING / old, KEPT_DAYS + 1)
    assert collect(spool) == [old]
    assert [path.name for path in (spool.root / INCOMING).iterdir()] == [young]


def test_an_interrupted_removal_is_completed(
    spool: Spool, receive: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = receive()
    end(folder)
    age(folder, KEPT_DAYS + 1)
    with monkeypatch.context() as patch:
        patch.setattr("ktrdr_vm.places.retention.remove_tree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect_requests(spool, dry_run=False)
    assert spool.list_ids() == []
    assert collect(spool) == [folder.name] and list((spool.root / REQUESTS).iterdir()) == []


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_removed_is_reported(
    spool: Spool, receive: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = receive()
    end(folder)
    age(folder, KEPT_DAYS + 1)
    monkeypatch.setattr("ktrdr_vm.places.retention.remove_tree", refuse)
    [row] = collect_requests(spool, dry_run=False)
    assert row["action"] == "failed" and "Read-only file system; next: remove it by hand" in row["reason"]


def refuse(*_: object) -> None:
    raise OSError(30, "Read-only file system")


def test_links_of_an_array_stay_with_its_requests(spool: Spool, receive: Callable[[], Path]) -> None:
    one, two = receive(), receive()
    batch = spool.root / BATCHES / one.name
    batch.mkdir(parents=True)
    for number, folder in enumerate((one, two)):
        end(folder)
        (batch / str(number)).symlink_to(f"../../requests/{folder.name}")
    age(one, KEPT_DAYS + 1)
    age(batch, KEPT_DAYS + 1)
    assert collect(spool) == [one.name] and (batch / "1").exists()
    age(two, KEPT_DAYS + 1)
    assert collect(spool) == [two.name] and not batch.exists()


def test_a_spool_that_is_not_there(spool: Spool) -> None:
    assert collect(spool) == [] and not spool.root.exists()
