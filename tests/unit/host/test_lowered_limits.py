"""Limits are only ever lowered: a login, or a job of a cluster, may begin with lower ones."""

from __future__ import annotations

import resource

import pytest

from ktrdr_vm.host.privileges import lower_limit

NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("hard", "most", "wanted"), [(NONE, 1024, 1024), (4096, 1024, 1024), (512, 1024, 512), (0, 1024, 0), (NONE, 0, 0)]
)
def test_a_lower_hard_limit_stays(monkeypatch: pytest.MonkeyPatch, hard: int, most: int, wanted: int) -> None:
    given: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: given.append((what, pair)))
    lower_limit(resource.RLIMIT_AS, most)
    assert given == [(resource.RLIMIT_AS, (wanted, wanted))]
