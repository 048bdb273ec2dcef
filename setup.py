"""What a wheel holds besides the package, which pyproject.toml cannot name recursively: the shipped documents, under share/ktrdr-vm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from setuptools import setup

SHIPPED = ("profiles", "playbooks", "images", "dashboards")


def find_shipped_files() -> Iterator[tuple[str, list[str]]]:
    """Each folder below `share/` with its files; names that begin with a dot are caches."""
    for top in SHIPPED:
        for folder in sorted({path.parent for path in Path(top).rglob("*") if path.is_file()}):
            if not any(part.startswith((".", "__")) for part in folder.parts):
                yield f"share/ktrdr-vm/{folder}", sorted(str(path) for path in folder.iterdir() if path.is_file())


setup(data_files=list(find_shipped_files()))
