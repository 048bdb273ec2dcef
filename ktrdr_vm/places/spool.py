"""The spool: the folder of requests at a place, with the attempts of each. filenames.py has every name in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.beneath import check_name, create_file, open_file
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.places.filenames import ATTEMPTS, BUNDLES, CANCEL, INCOMING, REQUESTS
from ktrdr_vm.places.kept_bundles import KeptBundles
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
from ktrdr_vm.places.request_state import RequestState, count_attempts, find_silence, read_state, write_outcome

MAX_ATTEMPT_FILES = 12_000


class Spool:
    """The requests in one folder, which belongs to this user alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bundles = KeptBundles(root / BUNDLES)

    def request(self, request_id: str) -> Path:
        return self.root / REQUESTS / parse_request_id(request_id)

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
        make_private(self.root, self.root / INCOMING, self.root / REQUESTS, folder)
        for name, digest in (bundles or {}).items():
            if name in HISTORY and is_digest(digest):
                self.bundles.link(digest, folder / name)
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
            if not self.bundles.has(folder, one) and not _is_as_sent(folder, one):
                raise UsageError(f"{one.name} did not arrive as it was sent", where=request_id, hint="submit it again")
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if str(path.relative_to(folder)) not in {DOCUMENT, *(one.name for one in request.files)}:
                path.unlink()
        is_part = bool(request.shallow) or any(one.name == BASE for one in request.files)
        for one in request.files:
            if one.name in HISTORY:
                self.bundles.keep(folder, one, part=is_part and one.name == BUNDLE)
        self.bundles.remove_unused()
        folder.rename(self.request(request_id))
        return request

    def receive_folder(self, folder: Path, request_id: str) -> Request:
        """A request from a folder of this host."""
        if self.begin(request_id) is not None:
            shutil.copytree(folder, self._incoming(request_id), dirs_exist_ok=True)
        return self.commit(request_id)

    def _incoming(self, request_id: str) -> Path:
        return self.root / INCOMING / parse_request_id(request_id)

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
        for path in sorted((self.root / REQUESTS).iterdir()) if (self.root / REQUESTS).is_dir() else ():
            with contextlib.suppress(UsageError):
                found.append(parse_request_id(path.name))
        return found

    def count_attempts(self, request_id: str) -> int:
        """The number of the newest attempt; 0 before the first."""
        return count_attempts(self.request(request_id))

    def state(self, request_id: str) -> RequestState:
        """The state of a request. UsageError if there is none."""
        return read_state(self.request(request_id), self.read(request_id))

    def find_silence(self, request_id: str) -> float:
        """Seconds since the last sign of a request: its start, and the lease of its newest attempt."""
        return find_silence(self.request(request_id))

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
