"""Golden files: what is rendered today, byte for byte. After a wanted change: `pytest tests/golden --regenerate`, then
read the diff."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

EXPECTED = Path(__file__).parent / "expected"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files instead of comparing with them")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("profile/document", text)` compares, or writes when asked to. One that is missing fails."""
    regenerate = request.config.getoption("--regenerate", default=False) or os.environ.get("KTRDR_GOLDEN") == "write"

    def check(name: str, text: str) -> None:
        path = EXPECTED / name
        if regenerate:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"there is no golden file {name}; write it with --regenerate and read it"
        assert text == path.read_text(encoding="utf-8")

    return check
