"""Secrets in what a workload prints, and in the documents that are made of it."""

from __future__ import annotations

import json
from typing import Any

from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.profile.model import Workload
from ktrdr_vm.report.mask import make_mask
from ktrdr_vm.run.workload import KEPT_OUTPUT, run_workload

SECRET = b'p"a\\ss<w>&rd\xc3\xa9'


class Printing:
    """A guest whose workload prints these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    def run(self, *_: object, on_output: Any = None, **__: object) -> GuestResult:
        for piece in self._pieces if on_output else ():
            on_output(piece)
        return GuestResult(0, b"0\n", b"")


def run(*pieces: bytes) -> tuple[bytes, str]:
    shown: list[bytes] = []
    result = run_workload(
        lambda: Printing(*pieces),  # type: ignore[arg-type,return-value]
        Workload(("x",)),
        environment={},
        chdir=None,
        mask=make_mask([b"hunter2hunter2"]),
        on_output=shown.append,
    )
    assert result is not None
    return b"".join(shown), result.stdout


def test_what_is_shown_while_it_runs_is_masked_even_in_pieces() -> None:
    shown, kept = run(b"token hunter2", b"hunter2 end\nrest hunter2hun", b"ter2")
    assert shown == b"token *** end\nrest ***" and "hunter2" not in kept


def test_a_secret_at_the_cut_of_a_long_output_is_masked() -> None:
    assert "hunter2" not in run(b"hunter2hunter2" + b"x" * (KEPT_OUTPUT - 7))[1]


def test_a_secret_is_masked_as_programs_spell_it() -> None:
    mask, text = make_mask([SECRET]), SECRET.decode()
    for spelled in (json.dumps(text), json.dumps(text, ensure_ascii=False), text):
        assert "ss" not in mask(spelled), spelled
