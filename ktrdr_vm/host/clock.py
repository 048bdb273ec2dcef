"""The time as every log, ledger and report writes it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """UTC, RFC 3339, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
