"""Every pattern of a schema holds for the whole text: nothing passes with a line feed at its end, which would be one in
a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_vm.policy.schema import POLICY
from ktrdr_vm.profile.schema import PRESET, PROFILE
from ktrdr_vm.profile.validator import validate


def find_patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "regex" and isinstance(value, str):
                yield value
            else:
                yield from find_patterns(value)


PATTERNS = sorted({pattern for schema in (PROFILE, POLICY, PRESET) for pattern in find_patterns(schema)})


def test_there_are_patterns() -> None:
    assert len(PATTERNS) >= 6


@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
def test_nothing_follows_what_a_pattern_means(pattern: str, data: st.DataObject) -> None:
    good = data.draw(st.from_regex(pattern, fullmatch=True))
    schema = {"key": {"type": "string", "regex": pattern}}
    assert validate({"key": good}, schema) == []
    for more in ("\n", "\r", "\n\n", "\x85", "\u2028", "\nserver evil 1.2.3.4:80"):
        assert validate({"key": good + more}, schema) != [] or "\\n" in pattern
