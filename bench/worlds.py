"""Rows about running without root: what leaves a world through pasta, and the same person's connections without it."""

from __future__ import annotations

import json
from pathlib import Path

from laboratory.person import Person, make_person

from bench.egress import PLAIN_SERVER, PORT, REQUESTS, SIZE, serving
from bench.place import Place

_TURNS = 3
# The same program, from within the world of the person who calls it.
_ENTER = (
    "import os, sys; from ktrdr_vm import enter_world; enter_world(); os.execv(sys.executable, [sys.executable,"
    " *sys.argv[1:]])"
)


def uplink(place: Place) -> dict[str, float]:
    """In turn, without a guard on the way: what a guard costs is measured elsewhere, and its proxy dials as these
    do."""
    with serving(place), make_person(1) as person:
        best: dict[str, float] = {}
        for _ in range(_TURNS):
            for prefix, words in (("pasta", ["-c", _ENTER]), ("dialled", [])):
                for name, value in _reach(person, words).items():
                    best[f"{prefix}.{name}"] = min(value, best.get(f"{prefix}.{name}", value))
    return best


def _reach(person: Person, words: list[str]) -> dict[str, float]:
    traffic = Path(__file__).with_name("traffic.py")
    ended = person.run(
        program=[
            person.python,
            *words,
            traffic,
            "reach",
            PLAIN_SERVER,
            str(PORT),
            PLAIN_SERVER,
            str(SIZE),
            str(REQUESTS),
        ],
        limit=600,
    )
    if ended.code:
        raise RuntimeError(ended.stderr[-1000:])
    said: dict[str, float] = json.loads(ended.stdout)
    return said
