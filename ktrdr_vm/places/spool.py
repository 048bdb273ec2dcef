"""The spool: the folder of requests at a place, with the attempts of each. The state of a request is read from its
files alone.

requests/<request_id>/
  request.json, workspace.bundle, …   the request, complete when its folder has this name
  started.json                        who was asked to run it: a process, or a job of the scheduler
  cancel                              it is to be cancelled
  outcome.json                        it ended without an attempt: it was cancelled while it waited
  output.log                          what the program printed
  attempts/<n>/                       see attempt.py
incoming/<request_id>/                a request that is being received
batches/<request_id>/<k>              links to the requests of one array
bundles/<sha256>[.part]               bundles of history, which requests have as hard links
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import check_name, create_file, open_file
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.places.history import MOST_OFFERED, Offer, read_tips
from ktrdr_vm.places.request import (
    BASE,
    BUNDLE,
    DOCUMENT,
    HISTORY,
    MAX_DOCUMENT,
    Request,
    SentFile,
    is_digest,
    is_file_name,
    parse_request,
    parse_request_id,
)

ATTEMPTS = "attempts"
OUTCOME = "outcome.json"
LEASE = "lease.jsonl"
CANCEL = "cancel"
STARTED = "started.json"
EVENTS = "events.jsonl"
LEDGER = "egress.jsonl"
RUN = "run/"
COMMITS = "commits.bundle"
MAX_ATTEMPT_FILES = 12_000
_MAX_OUTCOME = 64 * 1024
# A bundle on which none can build: it builds on another one, or its history has a boundary.
_PART = ".part"
# A request whose process did not begin in this time will not.
_START_LIMIT = 60.0
# Attempts after which a request is tried again: the host lacked something, or the VM could not be made.
RETRIED = (3, 4)

State = Literal["waiting", "running", "finished", "lost", "cancelled"]


@dataclass(frozen=True)
class RequestState:
    """The state of a request. `attempt` is the newest, 0 before the first; `run_id`, `outcome` and `exit_code` are
    those of its end."""

    request_id: str
    instance_id: str
    who: str
    state: State
    created_at: str
    attempt: int = 0
    node: str = ""
    why: str = ""
    outcome: str = ""
    exit_code: int = 0
    run_id: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in ("finished", "cancelled", "lost")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Spool:
    """The requests in one folder, which belongs to this user alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def request(self, request_id: str) -> Path:
        return self.root / "requests" / parse_request_id(request_id)

    def attempt(self, request_id: str, number: int) -> Path:
        return self.request(request_id) / ATTEMPTS / str(int(number))

    # -- receiving -----------------------------------------------------------------------------------------------------

    def begin(self, request_id: str, bundles: Mapping[str, str] | None = None) -> dict[str, int] | None:
        """The sizes of the files that were received already; None if the request is complete.

        `bundles` are files of the request by name with their sha256: those that the spool has are not received again.
        """
        folder = self._incoming(request_id)
        if self.request(request_id).exists():
            return None
        self.root.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        make_private(self.root, self.root / "incoming", self.root / "requests", folder)
        for name, digest in (bundles or {}).items():
            if name in HISTORY and is_digest(digest):
                for kept in self._find_kept(digest):
                    with contextlib.suppress(OSError):
                        os.link(kept, folder / name, follow_symlinks=False)
        return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}

    def put(self, request_id: str, name: str, offset: int, data: bytes) -> int:
        """Write bytes of a file at the end of what was received of it. The new size."""
        if name != DOCUMENT and not is_file_name(name):
            raise UsageError(
                f"{name!a:.100} cannot be in a request",
                where=request_id,
                hint="submit it with this version of ktrdr-vm",
            )
        folder = self._incoming(request_id)
        path = folder / name
        if offset == 0:
            descriptor = create_file(folder, name, replace=True)
        else:
            os.close(open_file(folder, name))
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "ab") as file:
            # A file with two names is a complete bundle of other requests.
            if file.tell() != offset or os.fstat(file.fileno()).st_nlink > 1:
                return file.tell()
            file.write(data)
            return file.tell()

    def commit(self, request_id: str) -> Request:
        """Check what was received against `request.json`, and give it its name. The same request again changes
        nothing."""
        if self.request(request_id).exists():
            return self.read(request_id)
        folder = self._incoming(request_id)
        request = parse_request(self._read_document(folder), request_id)
        if request.request_id != request_id:
            raise UsageError("the document names another request", where=request_id, hint="submit it again")
        for one in request.files:
            if not self._is_kept(folder, one) and not _is_as_sent(folder, one):
                raise UsageError(f"{one.name} did not arrive as it was sent", where=request_id, hint="submit it again")
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if str(path.relative_to(folder)) not in {DOCUMENT, *(one.name for one in request.files)}:
                path.unlink()
        is_part = bool(request.shallow) or any(one.name == BASE for one in request.files)
        for one in request.files:
            if one.name in HISTORY:
                self._keep(folder, one, part=is_part and one.name == BUNDLE)
        folder.rename(self.request(request_id))
        return request

    def list_bundles(self) -> list[Offer]:
        """The bundles with a complete history, the newest first, bounded."""
        found = []
        kept = [path for path in self._list_kept() if is_digest(path.name)]
        for path in sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True):
            with path.open("rb") as file:
                if tips := read_tips(file):
                    found.append(Offer(os.fstat(file.fileno()).st_size, path.name, tips))
            if len(found) == MOST_OFFERED:
                break
        return found

    def _find_kept(self, digest: str) -> tuple[Path, Path]:
        """Where a bundle is kept, by its digest: one with a complete history, or a part."""
        return self.root / "bundles" / digest, self.root / "bundles" / f"{digest}{_PART}"

    def _list_kept(self) -> list[Path]:
        folder = self.root / "bundles"
        return list(folder.iterdir()) if folder.is_dir() else []

    def _is_kept(self, folder: Path, one: SentFile) -> bool:
        """True for a bundle whose digest was checked when it came with an earlier request."""
        own = os.lstat(folder / one.name) if one.name in HISTORY and (folder / one.name).exists() else None
        for kept in self._find_kept(one.sha256):
            with contextlib.suppress(OSError):
                if own is not None and os.path.samestat(kept.stat(), own) and own.st_size == one.size:
                    return True
        return False

    def _keep(self, folder: Path, one: SentFile, *, part: bool) -> None:
        """Let later requests have a bundle that was checked. Those that no request has any more are removed."""
        make_private(self.root / "bundles")
        with contextlib.suppress(OSError):
            os.link(folder / one.name, self._find_kept(one.sha256)[part], follow_symlinks=False)
        for path in self._list_kept():
            with contextlib.suppress(OSError):
                if path.stat().st_nlink == 1:
                    path.unlink()

    def receive_folder(self, folder: Path, request_id: str) -> Request:
        """A request from a folder of this host."""
        if self.begin(request_id) is not None:
            shutil.copytree(folder, self._incoming(request_id), dirs_exist_ok=True)
        return self.commit(request_id)

    def _incoming(self, request_id: str) -> Path:
        return self.root / "incoming" / parse_request_id(request_id)

    def _read_document(self, folder: Path) -> bytes:
        try:
            with os.fdopen(open_file(folder, DOCUMENT), "rb") as file:
                return file.read(MAX_DOCUMENT)
        except FileNotFoundError:
            raise UsageError(
                "there is no such request here", where=folder.name, hint="`ktrdr-vm queue` lists the requests"
            ) from None

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, request_id: str) -> Request:
        """The request. UsageError if there is none."""
        return parse_request(self._read_document(self.request(request_id)), request_id)

    def list_ids(self) -> list[str]:
        """The ids of all requests, the oldest first."""
        found = []
        for path in sorted((self.root / "requests").iterdir()) if (self.root / "requests").is_dir() else ():
            with contextlib.suppress(UsageError):
                found.append(parse_request_id(path.name))
        return found

    def count_attempts(self, request_id: str) -> int:
        """The number of the newest attempt; 0 before the first."""
        folder = self.request(request_id) / ATTEMPTS
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 4), default=0)

    def state(self, request_id: str) -> RequestState:
        """The state of a request. UsageError if there is none."""
        request, folder = self.read(request_id), self.request(request_id)
        said: dict[str, Any] = {
            "request_id": request_id,
            "instance_id": request.instance_id,
            "who": request.who,
            "created_at": request.created_at,
        }
        number = self.count_attempts(request_id)
        if (early := read_outcome(folder)) is not None:
            return RequestState(
                **said, state="cancelled", attempt=number, outcome=early["outcome"], exit_code=early["exit_code"]
            )
        if number == 0:
            started = read_json(folder / STARTED)
            late = started.get("kind") == "process" and time.time() - float(started.get("at", 0)) > _START_LIMIT
            why = "it was started and did not begin; output.log there says why" if late else ""
            return RequestState(**said, state="lost" if late else "waiting", why=why, exit_code=4 if late else 0)
        attempt = self.attempt(request_id, number)
        lease, outcome = read_json(attempt / LEASE), read_outcome(attempt)
        node = str(lease.get("node", ""))
        if outcome is not None:
            retried = outcome["exit_code"] in RETRIED and number < request.attempts and not (folder / CANCEL).exists()
            words = {"outcome": outcome["outcome"], "exit_code": outcome["exit_code"], "run_id": outcome["run_id"]}
            why = f"attempt {number} ended with exit code {outcome['exit_code']}; it is tried again" if retried else ""
            return RequestState(
                **said, state="waiting" if retried else "finished", attempt=number, node=node, why=why, **words
            )
        if is_alive(attempt, lease, request.grace):
            return RequestState(**said, state="running", attempt=number, node=node)
        if number < request.attempts and read_json(folder / STARTED).get("kind") == "job":
            return RequestState(
                **said, state="waiting", attempt=number, node=node, why=f"attempt {number} was lost; it is tried again"
            )
        return RequestState(
            **said, state="lost", attempt=number, node=node, why=f"attempt {number} was lost", exit_code=4
        )

    def find_silence(self, request_id: str) -> float:
        """Seconds since the request was started, and since its newest attempt appended to its lease."""
        number = self.count_attempts(request_id)
        signs = [self.request(request_id) / STARTED]
        signs += [self.attempt(request_id, number), self.attempt(request_id, number) / LEASE] if number else []
        times = [0.0]
        for path in signs:
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return time.time() - max(times)

    def list_files(self, request_id: str, number: int) -> list[tuple[str, int]]:
        """Names and sizes of the files of an attempt. Links are not listed."""
        root = self.attempt(request_id, number)
        found = []
        for folder, _, files in os.walk(root):
            for name in sorted(files):
                path = Path(folder) / name
                if not path.is_symlink() and path.is_file() and not check_name(str(path.relative_to(root))):
                    found.append((str(path.relative_to(root)), path.stat().st_size))
        return sorted(found)[:MAX_ATTEMPT_FILES]

    def read_piece(self, request_id: str, number: int, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of a file of an attempt. Empty at its end, and if it does not exist yet."""
        try:
            with os.fdopen(open_file(self.attempt(request_id, number), name), "rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:
            return b""

    # -- cancelling ----------------------------------------------------------------------------------------------------

    def mark_cancelled(self, request_id: str) -> None:
        """Ask the attempt that runs to stop; the next one does not begin."""
        self.read(request_id)
        (self.request(request_id) / CANCEL).touch(mode=0o600)

    def end_early(self, request_id: str) -> None:
        """Record the end of a request that was cancelled while it waited."""
        write_outcome(
            self.request(request_id), {"outcome": "cancelled", "exit_code": 130, "run_id": "", "ended_at": now()}
        )


def _is_as_sent(folder: Path, one: SentFile) -> bool:
    with contextlib.suppress(FileNotFoundError), os.fdopen(open_file(folder, one.name), "rb") as file:
        return (
            os.fstat(file.fileno()).st_size == one.size
            and hashlib.file_digest(file, "sha256").hexdigest() == one.sha256
        )
    return False


def is_alive(attempt: Path, lease: dict[str, Any], grace: int) -> bool:
    """True if the attempt appended to its lease within `grace` seconds, and its process exists where that can be
    asked."""
    try:
        age = time.time() - (attempt / LEASE).stat().st_mtime
    except OSError:
        return (time.time() - attempt.stat().st_mtime) < grace
    pid = lease.get("pid")
    if (
        lease.get("node") == os.uname().nodename
        and lease.get("pid_namespace") == find_pid_namespace()
        and type(pid) is int
        and pid > 1
    ):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
    return age < grace


def find_pid_namespace() -> str:
    """A name of the PID namespace of this process; empty where there are none."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the first line of a file; empty if there is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
        data = json.loads(file.readline(_MAX_OUTCOME))
        return data if isinstance(data, dict) else {}
    return {}


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """How an attempt or a request ended; None before that."""
    data = read_json(folder / OUTCOME)
    if (
        isinstance(data.get("outcome"), str)
        and isinstance(data.get("exit_code"), int)
        and isinstance(data.get("run_id"), str)
    ):
        return data
    return None


def write_outcome(folder: Path, content: dict[str, Any]) -> None:
    write_durably(folder / OUTCOME, (json.dumps({"schema_version": 1, **content}) + "\n").encode())
