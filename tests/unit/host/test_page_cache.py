"""What a fork needed of a template's memory is read ahead of the next first one."""

from __future__ import annotations

import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ktrdr_vm.host.page_cache import find_cached, read_ahead, remember_cached

PAGE = mmap.PAGESIZE
PAGES = 256


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(os.urandom(PAGE * PAGES))
    drop(path)
    if any(find_cached(path)):
        pytest.skip("this file system keeps its pages")
    return path


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch(path: Path, pages: list[int]) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for page in pages:
            os.pread(file.fileno(), 1, page * PAGE)


def test_what_was_touched_is_in_the_cache_after_reading_ahead(memory: Path, tmp_path: Path) -> None:
    record = tmp_path / "pages.json"
    touched = [3, 4, 5, 90, 200]
    touch(memory, touched)
    assert remember_cached(memory, record) and not remember_cached(memory, record)
    drop(memory)
    assert sum(find_cached(memory)) == 0
    assert read_ahead(memory, record) >= len(touched) * PAGE
    # The kernel reads in the background; a read of the same pages waits for it.
    touch(memory, touched)
    cached = find_cached(memory)
    assert all(cached[page] for page in touched) and sum(cached) < PAGES // 2


def test_a_file_that_is_wholly_cached_tells_nothing(memory: Path, tmp_path: Path) -> None:
    memory.read_bytes()
    assert not remember_cached(memory, tmp_path / "pages.json") and not (tmp_path / "pages.json").exists()


@pytest.mark.parametrize("content", [b"", b"no json", b"[1]", b'[["a", 1]]', b"{}", b"[[99999999999999999999, 1]]"])
def test_a_record_that_cannot_be_read_is_removed_or_empty(memory: Path, tmp_path: Path, content: bytes) -> None:
    record = tmp_path / "pages.json"
    record.write_bytes(content)
    assert read_ahead(memory, record) == 0
    assert read_ahead(memory, tmp_path / "none.json") == 0


def test_many_at_once_write_one_record_and_none_fails(memory: Path, tmp_path: Path) -> None:
    """Forks of one template come together after a reboot, and a folder may not be writable."""
    record = tmp_path / "pages.json"
    touch(memory, [3, 4])
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(remember_cached, memory, record) for _ in range(16)]:
            future.result()
    assert json.loads(record.read_text()) and not list(tmp_path.glob(".pages*"))
    assert not remember_cached(memory, tmp_path / "none" / "pages.json")
