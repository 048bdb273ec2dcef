"""Limits of the telemetry of one instance: bodies are read and decompressed up to a maximum size, and events are
counted."""

from __future__ import annotations

import threading
import zlib
from typing import Any

from ktrdr_vm.egress.telemetry.otlp import MAX_BODY, OtlpError


class Tally:
    """Counts by name, until they are taken. Thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + count

    def take(self) -> dict[str, int]:
        with self._lock:
            counts, self._counts = self._counts, {}
            return counts


def inflate(body: bytes, encoding: str) -> bytes:
    """The body without its Content-Encoding, gzip or none. OtlpError beyond MAX_BODY bytes, without decompressing the
    rest."""
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise OtlpError(415, "Content-Encoding is gzip, or absent")
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        whole = inflater.decompress(body, MAX_BODY + 1)
    except zlib.error:
        raise OtlpError(400, "the body is not gzip") from None
    if len(whole) > MAX_BODY:
        raise OtlpError(413, f"a request has at most {MAX_BODY} bytes, also after decompression")
    if not inflater.eof or inflater.unused_data:
        raise OtlpError(400, "the body is not one complete gzip stream")
    return whole


def read_body(stream: Any, length: str | None, transfer: str | None) -> bytes:
    """The body of a request, by its length or in chunks, at most MAX_BODY bytes. OSError if the client stops or is too
    slow."""
    if transfer is not None:
        if transfer.strip().lower() != "chunked" or length is not None:
            raise OtlpError(400, "a body has a Content-Length, or is sent in chunks")
        return _read_chunks(stream)
    if length is None or not length.isascii() or not length.isdigit():
        raise OtlpError(411, "Content-Length is missing")
    if len(length) > 9 or int(length) > MAX_BODY:
        raise OtlpError(413, f"a request has at most {MAX_BODY} bytes")
    body: bytes = stream.read(int(length))
    if len(body) < int(length):
        raise OSError("the body ended early")
    return body


def _read_chunks(stream: Any) -> bytes:
    body = bytearray()
    while True:
        size = _parse_size(stream.readline(100))
        if size == 0:
            # Trailers may follow. They are not read, because the connection ends after the answer.
            return bytes(body)
        if len(body) + size > MAX_BODY:
            raise OtlpError(413, f"a request has at most {MAX_BODY} bytes")
        piece = stream.read(size)
        if len(piece) < size or stream.read(2) != b"\r\n":
            raise OtlpError(400, "a chunk does not have the stated length")
        body += piece


def _parse_size(line: bytes) -> int:
    digits = line.split(b";")[0].strip()
    if not line.endswith(b"\n") or not 0 < len(digits) <= 8 or digits.strip(b"0123456789abcdefABCDEF"):
        raise OtlpError(400, "a chunk has no size")
    return int(digits, 16)
