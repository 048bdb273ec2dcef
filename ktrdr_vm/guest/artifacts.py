"""Artifacts: files that the run fetches from the guest. They are not trusted, so everything is bounded.

Only regular files and folders are written, beneath the run directory, without following links, as 0644 files that
belong to root until the run directory is handed over. Each refused file has a row with its name and the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.guest.protocol import Guest, GuestTimeout
from ktrdr_vm.guest.tar_stream import TarStream, TarStreamError
from ktrdr_vm.host.beneath import check_name, create_file, remove_file, split_name

_MAX_REFUSALS = 1000


@dataclass(frozen=True)
class ArtifactLimits:
    """Bytes, counts and seconds for all artifacts of one call together; `single` for one file."""

    files: int = 10_000
    total: int = 1024 * 1024 * 1024
    single: int = 256 * 1024 * 1024
    seconds: float = 900.0


@dataclass(frozen=True)
class BroughtBack:
    """One file, or one refusal: `path` is then empty, and `refused` is the reason. `source` is the name in the guest.

    `path` begins with the name of the folder (`artifacts/…`).
    """

    path: str
    source: str
    size: int
    sha256: str
    refused: str = ""


class _Stop(Exception):
    """Nothing more of this source is read; with `final`, nothing more at all."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def fetch_artifacts(
    guest: Guest,
    sources: Sequence[str],
    directory: Path,
    *,
    limits: ArtifactLimits = ArtifactLimits(),
    become: bool = True,
) -> tuple[BroughtBack, ...]:
    """Fetch files and folders of the guest to `directory/<their path>`. GuestError only if the guest is lost.

    A missing source and everything over a limit is a refused row. What is left of the limits is shared evenly among the
    sources that follow, so that a large one costs no other, and each source that was not read to its end is named.
    """
    writer = _Writer(directory.parent, directory.name, limits=limits)
    deadline = time.monotonic() + limits.seconds
    for index, source in enumerate(sources):
        writer.begin_source(source, len(sources) - index)
        parts = split_name(source)
        if wrong := check_name("/".join(parts)):
            writer.refuse(source, wrong, 0)
            continue
        place = shlex.quote("./" + "/".join(parts))
        try:
            _find_oversized(guest, source, place, writer, limits, become=become, timeout=deadline - time.monotonic())
            # The guest omits files over the limit, so that a large file does not prevent the others.
            line = (
                f"cd / && find {place} -xdev -type f -size +{limits.single}c -prune -o -print0 2>/dev/null | "
                "tar --null --no-recursion --hard-dereference --format=gnu -cf - -T - 2>/dev/null"
            )
            stream = TarStream(writer)
            guest.run(
                line, timeout=max(deadline - time.monotonic(), 1), become=become, max_output=0, on_output=stream.feed
            )
            if stream.inside_member or not stream.finished:
                writer.cut_off("the stream of the guest ended too early")
        except TarStreamError as error:
            writer.cut_off(f"the stream of the guest is invalid: {error}")
        except (GuestTimeout, _Stop) as stop:
            final = not isinstance(stop, _Stop) or stop.final
            reason = str(stop) if isinstance(stop, _Stop) else f"the copy did not end within {limits.seconds:g} s"
            writer.cut_off(reason)
            if final:
                for later in sources[index + 1 :]:
                    writer.refuse(later, f"not copied: {reason}", 0)
                break
        finally:
            writer.close()
    return tuple(writer.artifacts)


def _find_oversized(
    guest: Guest, source: str, place: str, writer: _Writer, limits: ArtifactLimits, *, become: bool, timeout: float
) -> None:
    """Report missing and too large files, as the guest reports them. The limits of the stream apply in any case."""
    line = (
        f"cd / && [ -e {place} ] || exit 3; find {place} -xdev -type f -size +{limits.single}c -printf '%s %p\\0' |"
        " head -c 65536"
    )
    found = guest.run(line, timeout=max(timeout, 1), become=become, max_output=65536)
    if found.exit_code == 3:
        writer.refuse(source, "there is no such file in the guest", 0)
    for entry in found.stdout.decode("utf-8", "surrogateescape").split("\0")[:100]:
        size, _, name = entry.partition(" ")
        if name and re.fullmatch("[0-9]{1,19}", size):
            writer.refuse(name, f"larger than {limits.single} bytes", int(size))


class _Writer:
    """Receives the files of the stream and writes them."""

    def __init__(self, run_directory: Path, folder: str, *, limits: ArtifactLimits) -> None:
        self.artifacts: list[BroughtBack] = []
        self._root = run_directory
        self._folder = folder
        self._limits = limits
        self._files = 0
        self._total = 0
        self._refused = 0
        self._source = ""
        self._most_files, self._most_total = limits.files, limits.total
        self._present: tuple[str, str, int] | None = None
        self._descriptor = -1
        self._digest = hashlib.sha256()

    def begin_source(self, source: str, left: int) -> None:
        """The next source, of which `left` are left with it: its share of the files and bytes."""
        self._source = source
        self._most_files = self._files + max(1, (self._limits.files - self._files) // left)
        self._most_total = self._total + (self._limits.total - self._total) // left

    def begin(self, name: str, size: int) -> bool:
        if size > self._limits.single:
            # It cannot be skipped, because its bytes would have to be read.
            self.refuse(name, f"larger than {self._limits.single} bytes", size)
            raise _Stop("a file is larger than allowed and than the guest reported")
        if self._files >= min(self._most_files, self._limits.files):
            raise _Stop(f"more than its share of {self._limits.files} files")
        if self._total + size > self._most_total:
            raise _Stop(f"more than its share of {self._limits.total} bytes")
        self._files += 1
        self._total += size
        path = f"{self._folder}/{'/'.join(split_name(name))}" if not name.startswith("/") else name
        if wrong := check_name(path):
            self.refuse(name, wrong, size)
            return False
        try:
            self._descriptor = create_file(self._root, path)
        except FileExistsError:
            self.refuse(name, "a file of that name exists already", size)
            return False
        except (NotADirectoryError, IsADirectoryError) as error:
            self.refuse(name, error.strerror or "no such folder", size)
            return False
        except OSError as error:
            self.refuse(name, f"cannot be written: {error.strerror}", size)
            raise _Stop(f"the host cannot write: {error.strerror}", final=True) from None
        self._present = (path, name, size)
        self._digest = hashlib.sha256()
        return True

    def data(self, piece: bytes) -> None:
        self._digest.update(piece)
        view = memoryview(piece)
        try:
            while len(view):
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise _Stop(f"the host cannot write: {error.strerror}", final=True) from None

    def end(self) -> None:
        if self._present is None:
            return
        path, name, size = self._present
        self._present = None
        self.close()
        self.artifacts.append(BroughtBack(path, f"/{name.removeprefix('./')}", size, self._digest.hexdigest()))

    def refuse(self, name: str, reason: str, size: int) -> None:
        self._refused += 1
        if self._refused <= _MAX_REFUSALS:
            self.artifacts.append(BroughtBack("", name[:4096], size, "", refused=reason))
        if self._refused > 10 * self._limits.files:
            raise _Stop("too many entries that are not regular files", final=True)

    def cut_off(self, reason: str) -> None:
        """Remove the incomplete file, and record the reason."""
        name = self._present[1] if self._present else f"the rest of {self._source}"
        if self._present is not None:
            path = self._present[0]
            self._present = None
            self.close()
            remove_file(self._root, path)
        self._refused = min(self._refused, _MAX_REFUSALS - 1)
        self.refuse(name, reason, 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
