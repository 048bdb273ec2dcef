"""Client and server over two pipes: cuts, endless lines, wrong versions, wrong words."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import HostError, KtrdrError, UsageError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.places import connection as connections
from ktrdr_vm.places.connection import Connection
from ktrdr_vm.places.engine import NOT_LISTED, mark_started
from ktrdr_vm.places.far_end import FarEnd
from ktrdr_vm.places.filenames import LEASE, STARTED
from ktrdr_vm.places.request import Request
from ktrdr_vm.places.request_state import RequestState
from ktrdr_vm.places.secret_values import Values
from ktrdr_vm.places.serve import serve
from ktrdr_vm.places.service import Service
from ktrdr_vm.places.spool import Spool
from ktrdr_vm.places.wire import MAX_LINE, Lines, LostConnection

VERSION = ("1.2.3", 1)
ID = "20260101T000000Z-0123abcd"
GREETING = {"ktrdr-vm": "1.2.9", "schema": 1}


class FakeEngine:
    """Counts what it started."""

    is_here = True

    def __init__(self) -> None:
        self.started: list[str] = []
        self.reason = "Resources"

    def start(self, spool: Spool, requests: Sequence[Request], values: Mapping[str, Values]) -> None:
        self.values = values
        for one in requests:
            if one.request_id not in self.started:
                self.started.append(one.request_id)
                mark_started(spool.request(one.request_id), kind="job", job="1")

    def explain(self, spool: Spool, states: Sequence[RequestState]) -> dict[str, str]:
        return {one.request_id: self.reason for one in states if one.state == "waiting"}

    def cancel(self, spool: Spool, state: RequestState) -> None:
        spool.end_early(state.request_id)

    def render_script(self, spool: Spool, requests: Sequence[Request]) -> str:
        return "".join(one.request_id for one in requests)

    def find_way(self, spool: Spool, request_id: str) -> tuple[str, ...]:
        return ()

    def list_nodes(self) -> list[str]:
        return [""]

    def find_missing(self) -> dict[str, str]:
        return {"gres": "none"}

    def describe(self) -> dict[str, Any]:
        return {"engine": "fake"}


class Pipes:
    """Connections to a service in a thread. The next `cuts` ends after as many bytes of the answers."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.cuts: list[int] = []
        self.opened = 0

    def __call__(self) -> PipeChannel:
        self.opened += 1
        near_reads, far_writes = os.pipe()
        far_reads, near_writes = os.pipe()
        cut = self.cuts.pop(0) if self.cuts else None
        lines = Lines(far_reads, far_writes, "client")
        if cut is not None:
            lines = CutLines(far_reads, far_writes, cut)

        def work() -> None:
            with contextlib.suppress(KtrdrError, OSError):
                serve(lines, *VERSION, lambda settings: self.service)
            for one in (far_reads, far_writes):
                with contextlib.suppress(OSError):
                    os.close(one)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return PipeChannel(near_reads, near_writes, thread)


class CutLines(Lines):
    """Ends the connection after a number of messages, in the middle of the next."""

    def __init__(self, reads: int, writes: int, messages: int) -> None:
        super().__init__(reads, writes, "client")
        self._left = messages

    def send(self, content: dict[str, Any], *, timeout: float = 60.0) -> None:
        if self._left == 0:
            os.write(self._writes, json.dumps(content).encode()[:10])
            raise LostConnection("cut", where="", hint="")
        self._left -= 1
        super().send(content, timeout=timeout)


class PipeChannel:
    def __init__(self, reads: int, writes: int, thread: threading.Thread) -> None:
        self._descriptors = (reads, writes)
        self._thread = thread
        self.lines = Lines(reads, writes, "far")

    def close(self) -> str:
        for one in self._descriptors:
            os.close(one)
        self._thread.join(10)
        return "said on standard error"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def pipes(tmp_path: Path, engine: FakeEngine) -> Pipes:
    return Pipes(Service(Spool(tmp_path / "far" / "spool"), engine, Home(tmp_path / "far"), lambda *_: None, list))


@pytest.fixture
def near(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setattr(connections, "_WAITS", (0.0,))
    made = Connection(pipes, GREETING, "far", answer_limit=5)
    yield made
    made.close()


@pytest.mark.parametrize("cuts", [[], [0], [1], [2, 2, 2], [3, 4], [0, 1, 2, 3, 4, 5]])
def test_a_request_arrives_once_whatever_is_cut(
    cuts: list[int],
    pipes: Pipes,
    near: Connection,
    engine: FakeEngine,
    make_request: Callable[..., Request],
    write_request: Callable[[Request], Path],
) -> None:
    near.call("facts")
    near.close()
    pipes.cuts = list(cuts)
    far, request = FarEnd(near.call, "far"), make_request()
    folder = write_request(request)
    far.send([folder])
    far.start([request.request_id])
    far.start([request.request_id])
    [state] = far.states()
    assert (state.state, state.why) == ("waiting", "Resources")
    assert engine.started == [request.request_id] and pipes.cuts == []
    far.send([folder])
    far.cancel(request.request_id)
    assert far.state(request.request_id).state == "cancelled"


def test_a_request_whose_job_is_gone_does_not_wait_forever(
    pipes: Pipes,
    near: Connection,
    engine: FakeEngine,
    make_request: Callable[..., Request],
    write_request: Callable[[Request], Path],
    tmp_path: Path,
) -> None:
    """A job that could not be launched, was removed by somebody else, or whose attempt could not write to the spool."""
    far, request = FarEnd(near.call, "far"), make_request(attempts=2, grace=30)
    far.send([write_request(request)])
    far.start([request.request_id])
    engine.reason = NOT_LISTED
    assert far.state(request.request_id).state == "waiting", "it may have begun a moment ago"
    folder = tmp_path / "far/spool/requests" / request.request_id
    os.utime(folder / STARTED, (1, 1))
    assert (far.state(request.request_id).state, far.state(request.request_id).exit_code) == ("lost", 4)
    attempt = folder / "attempts/1"
    attempt.mkdir(parents=True)
    (attempt / LEASE).write_text('{"node": "n1"}\n')
    os.utime(attempt / LEASE, (time.time() - 60, time.time() - 60))
    os.utime(attempt, (1, 1))
    assert far.state(request.request_id).state == "waiting", "the scheduler may start the next one"
    os.utime(attempt / LEASE, (1, 1))
    state = far.state(request.request_id)
    assert state.state == "lost" and "attempt 1 was lost" in state.why and "its job has ended" in state.why
    engine.reason = "Pending: BeginTime"
    assert far.state(request.request_id).why == "Pending: BeginTime"


def test_patience_ends(pipes: Pipes, near: Connection) -> None:
    near.call("facts")
    near.close()
    near._patience = 0
    pipes.cuts = [0] * 10
    with pytest.raises(LostConnection, match="said on standard error"):
        near.call("facts")


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("nothing", {}),
        ("__init__", {}),
        ("put", {"request_id": "../x", "name": "request.json", "offset": 0, "data": ""}),
        ("put", {"request_id": "20260101T000000Z-0123abcd", "name": "../x", "offset": 0, "data": ""}),
        ("put", {"request_id": "20260101T000000Z-0123abcd", "name": "files/x", "offset": "0", "data": "!"}),
        ("put", {"request_id": "20260101T000000Z-0123abcd"}),
        ("read", {"request_id": "20260101T000000Z-0123abcd", "attempt": 1, "name": "../../request.json", "offset": 0}),
        ("read", {"request_id": "../../other", "attempt": 1, "name": "x", "offset": 0}),
        ("read", {"request_id": "20260101T000000Z-0123abcd", "attempt": "../..", "name": "x", "offset": 0}),
        ("commit", {"request_id": "20260101T000000Z-0123abcd"}),
        ("cancel", {"request_ids": ["/etc"]}),
        ("start", {"request_ids": ["20260101T000000Z-0123abcd"]}),
        ("script", {"requests": [{"x": 1}]}),
        ("script", {"requests": 7}),
        ("receive", {"requests": [1]}),
        ("receive", {"requests": [{}]}),
        ("receive", {"requests": [{"request_id": "../../x", "bundles": {}, "files": {}}]}),
        ("receive", {"requests": [{"request_id": ID, "bundles": [], "files": {}}]}),
        ("receive", {"requests": [{"request_id": ID, "bundles": {"base.bundle": "../../x"}, "files": {}}]}),
        ("receive", {"requests": [{"request_id": ID, "bundles": {}, "files": {"../x": ""}}]}),
        ("receive", {"requests": [{"request_id": ID, "bundles": {}, "files": {"files/../../x": "AA=="}}]}),
        ("receive", {"requests": [{"request_id": ID, "bundles": {}, "files": {"files/.git/config": "AA=="}}]}),
        ("receive", {"requests": [{"request_id": ID, "bundles": {}, "files": {"lease.jsonl": "AA=="}}]}),
        ("begin", {"request_id": ID, "bundles": 7}),
        ("begin", {"request_id": ID, "bundles": ["base.bundle"]}),
        ("contents", {"request_id": ID, "attempt": 1, "names": ["../../../../../etc/hostname"]}),
        ("contents", {"request_id": "../../x", "attempt": 1, "names": ["x"]}),
        ("contents", {"request_id": ID, "attempt": "..", "names": ["x"]}),
        ("start", {"request_ids": [ID], "values": {ID: {"api": "AA=="}}}),
        ("states", {"request_ids": 7}),
        ("files", {"request_id": ID, "attempt": [1]}),
    ],
)
def test_a_hostile_client_is_refused(operation: str, words: dict[str, Any], near: Connection, tmp_path: Path) -> None:
    with pytest.raises(KtrdrError):
        near.call(operation, **words)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert near.call("facts")["schema"] == 1, "the server goes on"


def test_links_at_the_far_end_are_not_followed(
    near: Connection,
    pipes: Pipes,
    make_request: Callable[..., Request],
    write_request: Callable[[Request], Path],
    tmp_path: Path,
) -> None:
    far, request = FarEnd(near.call, "far"), make_request()
    far.send([write_request(request)])
    attempt = tmp_path / "far/spool/requests" / request.request_id / "attempts/1"
    attempt.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (attempt / "link").symlink_to(tmp_path / "secret")
    assert far.list_files(request.request_id, 1) == []
    with pytest.raises(KtrdrError):
        far.read(request.request_id, 1, "link", 0)


def answer_with(*lines: bytes) -> Callable[[], PipeChannel]:
    def open_channel() -> PipeChannel:
        near_reads, far_writes = os.pipe()
        far_reads, near_writes = os.pipe()

        def work() -> None:
            with contextlib.suppress(OSError):
                for line in lines:
                    os.write(far_writes, line)
            os.close(far_writes)
            while os.read(far_reads, 65536):
                pass
            os.close(far_reads)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return PipeChannel(near_reads, near_writes, thread)

    return open_channel


OURS = b'{"ktrdr-vm": "1.2.3", "schema": 1}\n'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b"Welcome\n"], "does not speak the protocol"),
        ([b"x" * 65536] * (MAX_LINE // 65536 + 2), "a line is longer"),
        ([b"{}\n"], "not ktrdr-vm"),
        ([b'{"ktrdr-vm": "2.0.0", "schema": 1}\n'], "versions do not fit"),
        ([b'{"ktrdr-vm": "1.2.3", "schema": 2}\n'], "versions do not fit"),
        ([b'{"ktrdr-vm": "1.3.0", "schema": 1}\n'], "versions do not fit"),
        ([OURS, b'{"error": {"kind": "HostError", "message": "no home"}}\n'], "no home"),
        ([OURS, b'{"facts": {}}\n', b'{"id": 7, "result": {}}\n'], "another question"),
        ([OURS, b'{"facts": {}}\n', b'{"id": 1, "result": 3}\n'], "no result"),
        ([OURS, b'{"facts": {}}\n', b'{"id": 1, "error": "\xff"}\n'], "does not speak"),
        ([OURS, b'{"facts": {}}\n', b'{"id": 1, "error": 5}\n'], "without a reason"),
    ],
    ids=range(11),
)
def test_wrong_far_ends_are_a_sentence(lines: list[bytes], said: str) -> None:
    near = Connection(answer_with(*lines), GREETING, "far", answer_limit=5)
    with pytest.raises(KtrdrError, match=said) as caught:
        near.call("facts")
    assert caught.value.hint and caught.value.where.startswith("far")
    near.close()


def test_a_far_end_that_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_WAITS", (0.0,))
    near = Connection(answer_with(), GREETING, "far", answer_limit=5)
    with pytest.raises(HostError, match="before its first line"):
        near.call("facts")


def test_one_that_does_not_answer() -> None:
    reads, writes = os.pipe()
    lines = Lines(reads, writes, "far")
    with pytest.raises(LostConnection, match="no answer"):
        lines.receive(timeout=0.05)
    with pytest.raises(UsageError, match="too long"):
        lines.send({"x": "y" * MAX_LINE})
    with pytest.raises(LostConnection, match="accepted nothing"):
        lines.send({"x": "y" * 900_000}, timeout=0.05)
