"""Artifacts from a guest that lies: refused or capped, said, and nothing outside the folder."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.guest.artifacts import ArtifactLimits, BroughtBack, fetch_artifacts
from ktrdr_vm.guest.protocol import GuestResult, GuestTimeout
from tests.fakes.guest import RefusingGuest

SMALL = ArtifactLimits(files=5, total=4000, single=1000, seconds=5)


class TarGuest(RefusingGuest):
    """Sends prepared bytes as its tar stream, in pieces of an odd size."""

    def __init__(self, stream: bytes, *, listing: bytes = b"", missing: bool = False, hangs: bool = False) -> None:
        self.stream = stream
        self.listing = listing
        self.missing = missing
        self.hangs = hangs
        self.lines: list[str] = []

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        chdir: str | None = None,
        become: bool = False,
        max_output: int = 0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> GuestResult:
        self.lines.append(str(command))
        if on_output is None:
            return GuestResult(3 if self.missing else 0, self.listing, b"")
        for start in range(0, len(self.stream), 777):
            on_output(self.stream[start : start + 777])
        if self.hangs:
            raise GuestTimeout("the command did not end", hint="-")
        return GuestResult(0, b"", b"")


def make_tar(*entries: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            info.mode = 0o6777
            archive.addfile(info, io.BytesIO(entry[1]))
    return sink.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def collect(stream: bytes, run: Path, limits: ArtifactLimits = SMALL, **settings: Any) -> tuple[BroughtBack, ...]:
    return fetch_artifacts(TarGuest(stream, **settings), ["/w/out"], run / "artifacts", limits=limits)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = tmp_path / "deep" / "run"
    made.mkdir(parents=True)
    return made


def files_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir())


def test_files_arrive_with_digest_and_plain_rights(run: Path) -> None:
    rows = collect(
        make_tar(special("./w/out", tarfile.DIRTYPE), ("./w/out/a.txt", b"abc"), ("./w/out/s/b", b"x" * 999)), run
    )
    assert [(row.path, row.size, row.refused) for row in rows] == [
        ("artifacts/w/out/a.txt", 3, ""),
        ("artifacts/w/out/s/b", 999, ""),
    ]
    assert rows[0].sha256 == hashlib.sha256(b"abc").hexdigest()
    written = run / "artifacts/w/out/a.txt"
    assert written.read_bytes() == b"abc"
    assert stat.S_IMODE(written.stat().st_mode) == 0o644


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_within_bounds_arrive(run: Path, format: int) -> None:
    name = "./w/out/" + "/".join(["d" * 60] * 4) + "/ü"
    (row,) = collect(make_tar((name, b"1"), format=format), run)
    assert row.refused == ""
    assert (run / row.path).read_bytes() == b"1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./../../x", "`..`"),
        ("../x", "`..`"),
        ("./w/../../x", "`..`"),
        ("/etc/cron.d/x", "absolute"),
        ("./w/a\x1b[2Jb", "control"),
        ("./w/a\nb", "control"),
        ("./w/\u202eexe", "control"),
        ("./w/" + "a" * 256, "255"),
        ("./" + "a/" * 2000 + "x", "longer than 1024"),
        ("./" + "a/" * 40 + "x", "deep"),
    ],
)
def test_names_that_lie_are_refused_and_the_rest_arrives(run: Path, name: str, said: str) -> None:
    rows = collect(make_tar((name, b"evil"), ("./w/out/good", b"ok")), run)
    assert said in rows[0].refused
    assert rows[0].path == rows[0].sha256 == ""
    assert rows[1].path == "artifacts/w/out/good"
    assert files_in(run.parent.parent) == ["deep/run/artifacts/w/out/good"]


@pytest.mark.parametrize(
    "entry",
    [
        special("./w/out/l", tarfile.SYMTYPE, "/etc/shadow"),
        special("./w/out/l", tarfile.LNKTYPE, "/etc/shadow"),
        special("./w/out/l", tarfile.CHRTYPE),
        special("./w/out/l", tarfile.BLKTYPE),
        special("./w/out/l", tarfile.FIFOTYPE),
        special("./w/out/l", tarfile.GNUTYPE_SPARSE),
        special("./w/out/l", b"Z"),
    ],
    ids=["link", "hard", "char", "block", "fifo", "sparse", "unknown"],
)
def test_only_regular_files_arrive(run: Path, entry: tarfile.TarInfo) -> None:
    rows = collect(make_tar(entry, ("./w/out/l/inside", b"1")), run)
    assert rows[0].refused
    assert files_in(run) == ["artifacts/w/out/l/inside"]


def test_a_link_on_the_host_side_is_not_followed(run: Path) -> None:
    (run / "artifacts").symlink_to("/tmp")
    (row,) = collect(make_tar(("./w/out/a", b"1")), run)
    assert row.refused
    assert not Path("/tmp/w/out/a").exists()


def test_a_name_that_stands_twice_is_refused(run: Path) -> None:
    rows = collect(make_tar(("./w/a", b"1"), ("./w/a", b"2"), ("./w/a/b", b"3")), run)
    assert [bool(row.refused) for row in rows] == [False, True, True]
    assert (run / "artifacts/w/a").read_bytes() == b"1"


def test_too_many_files_too_many_bytes(run: Path) -> None:
    rows = collect(make_tar(*((f"./w/{n}", b"1") for n in range(9))), run)
    assert len([row for row in rows if not row.refused]) == 5
    assert "share of 5 files" in rows[-1].refused
    rows = collect(make_tar(*((f"./v/{n}", b"1" * 1000) for n in range(5))), run)
    assert "share of 4000 bytes" in rows[-1].refused


def test_a_terabyte_is_refused_without_reading_it(run: Path) -> None:
    header = tarfile.TarInfo("./w/out/huge")
    header.size = 1 << 40
    rows = collect(
        make_tar(("./w/out/first", b"1")).rstrip(b"\0").ljust(1024, b"\0")
        + header.tobuf(tarfile.GNU_FORMAT)
        + b"\0" * 5000,
        run,
    )
    assert rows[0].refused == ""
    assert any("larger than" in row.refused for row in rows)
    assert files_in(run) == ["artifacts/w/out/first"]


def test_oversized_files_are_named_from_the_guests_listing(run: Path) -> None:
    rows = collect(make_tar(("./w/out/a", b"1")), run, listing=b"1099511627776 ./w/out/sparse\x001 \x00nonsense\x00")
    assert (rows[0].source, rows[0].size) == ("./w/out/sparse", 1 << 40)
    assert rows[1].path


@pytest.mark.parametrize("size", ["²", "9" * 5000, "-1", ""])
def test_a_size_that_is_no_number_is_no_row(run: Path, size: str) -> None:
    """`isdigit` is true for a superscript, and `int` has a limit of digits."""
    rows = collect(make_tar(("./w/out/a", b"1")), run, listing=f"{size} ./w/out/b\0".encode())
    assert [row.path for row in rows] == ["artifacts/w/out/a"]


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"not a tar" * 1000,
        make_tar(("./w/out/a", b"x" * 900))[:700],
        make_tar(("./w/out/a", b"x" * 900))[:1200],
        os.urandom(4096),
    ],
    ids=["empty", "text", "cut-in-file", "cut-in-padding", "noise"],
)
def test_broken_streams_are_said_and_leave_no_half_file(run: Path, stream: bytes) -> None:
    rows = collect(stream, run)
    assert rows[-1].refused
    assert all((run / name).stat().st_size == 900 for name in files_in(run))


def test_an_extended_header_without_end_is_refused(run: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (row,) = collect(header.tobuf(tarfile.GNU_FORMAT) + b"a" * 100_000, run)
    assert "extended header" in row.refused


def test_a_missing_source_and_a_bad_source(run: Path) -> None:
    rows = fetch_artifacts(
        TarGuest(make_tar(), missing=True), ["/w/none", "/w/../../etc", "/"], run / "artifacts", limits=SMALL
    )
    assert [row.source for row in rows if row.refused][:3] == ["/w/none", "/w/../../etc", "/"]


def test_a_guest_that_never_ends_is_cut(run: Path) -> None:
    rows = collect(make_tar(("./w/out/a", b"x" * 900))[:700], run, hangs=True)
    assert "within 5 s" in rows[-1].refused
    assert files_in(run) == []


def test_paths_are_quoted_for_the_guest(run: Path) -> None:
    guest = TarGuest(make_tar())
    fetch_artifacts(guest, ["/w/$(id); rm -rf '"], run / "artifacts", limits=SMALL)
    assert all("""'./w/$(id); rm -rf '"'"''""" in line for line in guest.lines)


class FolderGuest(TarGuest):
    """Sends another stream for each source, in turn."""

    def __init__(self, *streams: bytes, hangs_at: int = -1) -> None:
        super().__init__(b"")
        self.streams = list(streams)
        self.hangs_at = len(streams) - hangs_at if hangs_at >= 0 else -1

    def run(self, command: Sequence[str] | str, **options: Any) -> GuestResult:
        if options.get("on_output") is not None:
            self.hangs = len(self.streams) == self.hangs_at
            self.stream = self.streams.pop(0)
        return super().run(command, **options)


def many(folder: str, count: int) -> bytes:
    return make_tar(*((f"./{folder}/{number}", b"1") for number in range(count)))


def test_a_large_source_costs_no_other_and_each_is_named(run: Path) -> None:
    guest = FolderGuest(many("a", 100), many("b", 2), many("c", 100))
    limits = ArtifactLimits(files=12, total=4000, single=1000, seconds=5)
    rows = fetch_artifacts(guest, ["/a", "/b", "/c"], run / "artifacts", limits=limits)
    came = [row.source[1] for row in rows if not row.refused]
    assert (came.count("a"), came.count("b"), came.count("c")) == (4, 2, 6)
    assert [row.source for row in rows if row.refused] == ["the rest of /a", "the rest of /c"]


def test_what_a_copy_that_hangs_leaves_out_is_named(run: Path) -> None:
    guest = FolderGuest(many("a", 1), many("b", 1), many("c", 1), hangs_at=0)
    rows = fetch_artifacts(guest, ["/a", "/b", "/c"], run / "artifacts", limits=SMALL)
    assert [(row.source, "did not end" in row.refused) for row in rows if row.refused] == [
        ("the rest of /a", True),
        ("/b", True),
        ("/c", True),
    ]
