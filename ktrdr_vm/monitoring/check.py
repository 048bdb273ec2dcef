"""One line of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Check:
    """A requirement, and whether this host meets it. `fix` is the way to correct it."""

    name: str
    state: State
    detail: str
    fix: str = ""
