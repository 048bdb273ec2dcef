"""Messages between the guard and its relay and sender: one JSON object in a packet."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ktrdr_vm.host.messages import require_fields, require_number, require_text

# The counts that a child may send, which are fields of the ledger.
COUNTS = ("accepted", "refused", "refused_rate", "refused_queue", "claims", "sent", "dropped", "bytes_out")
_MOST = 2**40


@dataclass(frozen=True)
class Counted:
    """The counts since the last message; `told` is True if the guard had requested them."""

    counts: dict[str, int] = field(default_factory=dict)
    told: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**self.counts, **({"told": 1} if self.told else {})}

    @classmethod
    def from_json(cls, content: object) -> Counted:
        """ValueError for an unknown field, and for a value that is not a count."""
        if not isinstance(content, dict) or not content:
            raise ValueError("it has counted nothing")
        if unknown := sorted(str(name)[:40] for name in content.keys() - {*COUNTS, "told"}):
            raise ValueError(f"it counts no {', '.join(unknown)!a}"[:200])
        counts = {name: require_number(count, 1, _MOST) for name, count in content.items() if name != "told"}
        return cls(counts, "told" in content and bool(require_number(content["told"], 1, 1)))


@dataclass(frozen=True)
class Asked:
    """A request for the counts; with a `run_id`, another run has begun."""

    run_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {} if self.run_id is None else {"run_id": self.run_id}

    @classmethod
    def from_json(cls, content: object) -> Asked:
        return (
            cls(require_text(require_fields(content, "run_id")["run_id"]))
            if content
            else cls(**require_fields(content))
        )


def encode(message: Counted | Asked) -> bytes:
    return json.dumps(message.to_json()).encode()
