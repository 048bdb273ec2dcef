"""A little of `make fuzz` in every run: bytes from nowhere, and a known document with some of its bytes changed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from targets import SEEDS, TARGETS

PIECES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4), st.binary(max_size=4)), max_size=6)


def mutate(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, put in changes:
        at = min(at, len(seed))
        seed = seed[:at] + put + seed[at + cut :]
    return seed


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_nothing_but_its_own_refusal_comes_of_any_bytes(name: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.binary(max_size=600) | st.builds(mutate, st.sampled_from(SEEDS[name]), PIECES))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_no_document_takes_long(name: str) -> None:
    for seed in SEEDS[name]:
        began = time.process_time()
        TARGETS[name](seed)
        assert time.process_time() - began < 10
