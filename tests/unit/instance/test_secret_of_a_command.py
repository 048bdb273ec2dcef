"""A command that prints a secret runs as the person who calls, word by word, and what it prints is the value."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ktrdr_vm.errors import HostError
from ktrdr_vm.host.process import Completed
from ktrdr_vm.instance import secret_sources
from ktrdr_vm.profile.model import Secret

WORDS = ("pass", "show", "a key; $HOME")


@pytest.mark.parametrize(("code", "said"), [(0, b"value\n"), (1, b"value\n"), (0, b"\n")])
def test_it_runs_as_the_person_and_its_output_is_the_value(
    monkeypatch: pytest.MonkeyPatch, code: int, said: bytes
) -> None:
    ran: list[tuple[list[str], object]] = []

    def run(words: list[str], *, owner: object, environment: Mapping[str, str], **_: object) -> Completed:
        assert "KTRDR_OF_THE_HOST" not in environment
        ran.append((words, owner))
        return Completed(tuple(words), code, said, b"no such entry")

    monkeypatch.setenv("KTRDR_OF_THE_HOST", "x")
    monkeypatch.setattr(secret_sources.process, "run", run)
    monkeypatch.setattr(secret_sources, "find_owner", lambda: (1234, 1235))
    monkeypatch.setattr(secret_sources, "find_login", lambda _: {"HOME": "/home/person"})
    entry = Secret("key", "/run/secrets/key", command=WORDS)
    if code == 0 and said.strip():
        assert secret_sources.read_source(entry) == b"value"
    else:
        with pytest.raises(HostError, match="the command of the secret key ended"):
            secret_sources.read_source(entry)
    assert ran == [(list(WORDS), (1234, 1235))]
