"""Fetching the results of a request: the run directory and the commits of one attempt, into the state directory of this
host."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.evidence.reader import parse_report
from ktrdr_vm.guest.commits import MAX_BUNDLE, Returned, ReturnedRef, accept_bundle
from ktrdr_vm.host.beneath import create_file
from ktrdr_vm.host.git import COMMIT
from ktrdr_vm.host.owner import find_owner
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.received import Origin, receive_run
from ktrdr_vm.host.repository import Repository, find_repository, resolve_commit
from ktrdr_vm.host.runs import FinishedRun
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.places.book import Book, Entry
from ktrdr_vm.places.far_end import EXIT_CODES, FarEnd
from ktrdr_vm.places.filenames import COMMITS, OUTCOME, RUN
from ktrdr_vm.places.reach import Reach
from ktrdr_vm.places.request_state import RequestState

_MAX_OUTCOME = 64 * 1024


@dataclass(frozen=True)
class Fetched:
    """What was fetched. `run` is None if the request ended before a run began; `message` and `hint` then say why."""

    state: RequestState
    run: Path | None = None
    refs: tuple[ReturnedRef, ...] = ()
    message: str = ""
    hint: str = ""


def fetch(
    far: FarEnd, home: Home, entry: Entry, *, state: RequestState | None = None, note: Callable[[str], object] = str
) -> Fetched:
    """The results of a request that has ended, by its state, which is asked for if it is not given.

    UsageError before its end, for what the place may not send, and for another attempt than the one that was fetched
    before.
    """
    state = state or far.state(entry.request_id)
    if not state.has_ended:
        raise UsageError(
            f"the request is {state.state}", where=entry.request_id, hint="`ktrdr-vm watch` follows it to its end"
        )
    if state.instance_id != entry.instance_id:
        raise UsageError(
            f"the place names the instance {state.instance_id}",
            where=entry.request_id,
            hint="it is not the one that was submitted",
        )
    if entry.accepted not in (0, state.attempt):
        raise UsageError(
            f"results were accepted from attempt {entry.accepted}, and the place offers attempt {state.attempt}",
            where=entry.request_id,
            hint="results come from one attempt only; submit the request again",
        )
    if state.attempt == 0:
        return Fetched(state, message=state.why)
    files = dict(far.list_files(entry.request_id, state.attempt))
    said = _read_outcome(far, state, files)
    if not state.run_id or RUN + "report.json" not in files:
        return Fetched(state, message=said["message"] or state.why, hint=said["hint"])
    origin = Origin(entry.place, state.node, entry.request_id, state.attempt, entry.workspace)
    with receive_run(home, entry.instance_id, state.run_id, origin, find_owner(), here=far.here) as made:
        run = {name: size for name, size in files.items() if name.startswith(RUN)}

        def create(name: str) -> int:
            return create_file(made, name.removeprefix(RUN))

        for name in far.download_small(entry.request_id, state.attempt, run, create):
            far.download(entry.request_id, state.attempt, name, run[name], create(name))
        _check_report(made, state, entry)
        refs = _take_commits(far, state, entry, files.get(COMMITS))
    Book(home).accept(entry, state.attempt, state.run_id)
    for one in refs:
        note(f"{one.commit[:12]}  {one.ref}  {len(one.changed)} paths changed")
    return Fetched(state, home.run(entry.instance_id, state.run_id), refs, said["message"], said["hint"])


def _read_outcome(far: FarEnd, state: RequestState, files: dict[str, int]) -> dict[str, str]:
    """Message and hint of the end of an attempt, each bounded; empty without one."""
    data: Any = {}
    if 0 < files.get(OUTCOME, 0) <= _MAX_OUTCOME:
        try:
            data = json.loads(far.read(state.request_id, state.attempt, OUTCOME, 0))
        except (ValueError, RecursionError):
            data = {}
    said = data if isinstance(data, dict) else {}
    where = str(said.get("where", ""))[:400]
    message = str(said.get("message", ""))[:4000]
    return {
        "message": f"{where}: {message}" if where and message else message,
        "hint": str(said.get("hint", ""))[:1000],
    }


def _check_report(made: Path, state: RequestState, entry: Entry) -> None:
    """UsageError unless the report is that of this request."""
    where = f"{entry.place}: {entry.request_id}"
    report = parse_report(FinishedRun(made).read("report.json"), where)
    expected = {
        "instance_id": entry.instance_id, "run_id": state.run_id, "base_commit": entry.commit, "outcome": state.outcome,
        "exit_code": state.exit_code,
    }  # fmt: skip
    for key, value in expected.items():
        if getattr(report, key) != value and not (key == "outcome" and state.outcome == "cancelled"):
            raise UsageError(
                f"the report is not that of the request: {key} is {getattr(report, key)!a:.100}",
                where=where,
                hint="nothing was stored",
            )
    if report.exit_code not in EXIT_CODES:
        raise UsageError("the report has an unknown exit code", where=where, hint="nothing was stored")


def _take_commits(far: FarEnd, state: RequestState, entry: Entry, size: int | None) -> tuple[ReturnedRef, ...]:
    """Fetch the commits into refs/ktrdr/<instance_id>/, checked as those of a guest."""
    if size is None or not entry.workspace:
        return ()
    if size > MAX_BUNDLE:
        raise UsageError(
            f"its commits are {size} bytes, more than {MAX_BUNDLE}", where=entry.request_id, hint="nothing was stored"
        )
    repository = find_repository(Path(entry.workspace))
    with tempfile.TemporaryDirectory(prefix="ktrdr-fetch-") as name:
        bundle = Path(name) / COMMITS
        far.download(
            entry.request_id, state.attempt, COMMITS, size, os.open(bundle, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        )
        if os.geteuid() == 0:
            # Git runs as the owner of the repository.
            for path in (bundle, bundle.parent):
                os.chown(path, *repository.owner)
        return accept_bundle(repository, entry.commit, bundle, parse_instance_id(entry.instance_id))


def take_live_commits(reach: Reach, repository: Repository, base: str) -> Returned:
    """Fetch the commits of an instance that runs at a place, checked as those of a guest. `base` is empty if it is not
    known here."""
    with tempfile.NamedTemporaryFile(prefix="ktrdr-commits-") as file:
        first = reach.receive(["pull", "--stream", "--", reach.instance_id], most=MAX_BUNDLE, into=file)
        said, left = _parse_standing(first)
        if not isinstance(said, str) or not COMMIT.fullmatch(said) or (base and said != base):
            raise UsageError(
                f"the base of the instance is {said!a:.80}, which is not that of the request",
                where=reach.place.name,
                hint="nothing was stored",
            )
        if resolve_commit(repository, said) != said:
            raise UsageError(
                f"this repository has no commit {said[:12]}, which the instance began with",
                where=str(repository.root),
                hint="call it in the repository whose branch runs there",
            )
        if not file.tell():
            return Returned((), "", *left)
        if os.geteuid() == 0:
            os.chown(file.name, *repository.owner)
        refs = accept_bundle(repository, said, Path(file.name), parse_instance_id(reach.instance_id))
        return Returned(refs, "", *left)


def _parse_standing(line: bytes) -> tuple[object, tuple[int, int, int]]:
    """The base that a place names, unchecked, and the counts of what stays behind; zeros for what is no count."""
    try:
        document = json.loads(line or b"{}")
        base, counts = document.get("base_commit"), document.get("left")
    except (ValueError, AttributeError, RecursionError):
        return None, (0, 0, 0)
    if not isinstance(counts, list) or len(counts) != 3:
        return base, (0, 0, 0)
    loose, apart, stashed = (one if type(one) is int and 0 <= one < 10_000_000 else 0 for one in counts)
    return base, (loose, apart, stashed)
