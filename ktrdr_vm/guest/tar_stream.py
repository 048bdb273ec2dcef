"""Streaming reader for a tar archive of a hostile guest: at most one header and one chunk are in memory.

`tarfile` reads extended headers of any size into memory and expands sparse files, so only its parsing of a single
512-byte header is used. This file decides what may follow a header.
"""

from __future__ import annotations

import tarfile
from typing import Protocol

_BLOCK = 512
_MAX_EXTENDED = 64 * 1024
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class TarStreamError(Exception):
    """The stream is not a valid tar archive."""


class Receiver(Protocol):
    """Receives the members of the stream. `begin` returns whether the bytes of the file are wanted."""

    def begin(self, name: str, size: int) -> bool: ...
    def data(self, piece: bytes) -> None: ...
    def end(self) -> None: ...
    def refuse(self, name: str, reason: str, size: int) -> None: ...


class TarStream:
    """Parses the bytes that it is fed, and calls the receiver. TarStreamError if the stream is not valid."""

    def __init__(self, receiver: Receiver) -> None:
        self.finished = False
        self._receiver = receiver
        self._buffer = bytearray()
        self._left = 0  # remaining bytes of the current member
        self._padding = 0
        self._wanted = False
        self._extended: tuple[bytes, bytearray] | None = None
        self._long_name: str | None = None
        self._long_size: int | None = None

    @property
    def inside_member(self) -> bool:
        return self._left > 0

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view) and not self.finished:
            if self._left:
                piece = bytes(view[: self._left])
                view = view[len(piece) :]
                self._left -= len(piece)
                self._take(piece)
            elif self._padding:
                skipped = min(self._padding, len(view))
                view = view[skipped:]
                self._padding -= skipped
            else:
                missing = _BLOCK - len(self._buffer)
                self._buffer.extend(view[:missing])
                view = view[missing:]
                if len(self._buffer) == _BLOCK:
                    block, self._buffer = bytes(self._buffer), bytearray()
                    self._header(block)

    def _header(self, block: bytes) -> None:
        if not any(block):
            self.finished = True
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise TarStreamError(f"a damaged header: {error}") from None
        if header.size < 0:
            raise TarStreamError("a negative size")
        self._extended = None
        self._wanted = False
        if header.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        ):
            if header.size > _MAX_EXTENDED:
                raise TarStreamError("an extended header is too large")
            self._extended = (header.type, bytearray())
            self._start(header.size)
            return
        name = header.name if self._long_name is None else self._long_name
        size = header.size if self._long_size is None else self._long_size
        self._long_name = self._long_size = None
        if header.type in _REGULAR and not name.endswith("/"):
            self._wanted = self._receiver.begin(name, size)
            self._start(size)
        elif header.type == tarfile.DIRTYPE or header.type in _REGULAR:
            self._start(size if header.type in _REGULAR else 0)
        else:
            self._receiver.refuse(name, _KINDS.get(header.type, "an unknown kind of entry"), size)
            # Links and devices carry no data, whatever their size field says; everything else does.
            self._start(size if header.type not in _KINDS or header.type == tarfile.GNUTYPE_SPARSE else 0)

    def _start(self, size: int) -> None:
        self._left, self._padding = size, -size % _BLOCK
        if size == 0:
            self._close()

    def _take(self, piece: bytes) -> None:
        if self._extended is not None:
            self._extended[1].extend(piece)
        elif self._wanted:
            self._receiver.data(piece)
        if self._left == 0:
            self._close()

    def _close(self) -> None:
        if self._extended is not None:
            kind, content = self._extended
            self._extended = None
            if kind == tarfile.GNUTYPE_LONGNAME:
                self._long_name = bytes(content).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif kind == tarfile.XHDTYPE:
                self._pax(bytes(content))
        elif self._wanted:
            self._wanted = False
            self._receiver.end()

    def _pax(self, content: bytes) -> None:
        while content:
            length, _, _rest = content.partition(b" ")
            if not length.isdigit() or len(length) > 6 or not len(length) < int(length) <= len(content):
                raise TarStreamError("a damaged extended header")
            key, _, value = content[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
            content = content[int(length) :]
            if key == b"path":
                self._long_name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                if not value.isdigit() or len(value) > 19:
                    raise TarStreamError("a damaged size")
                self._long_size = int(value)
            elif key.startswith(b"GNU.sparse"):
                raise TarStreamError("a sparse file")
