"""The line of shell that repeats a call: one line of printable ASCII, without standard input and without secrets."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ktrdr_vm.host.program_call import ProgramCall, quote
from ktrdr_vm.report.mask import make_mask


def test_user_folder_environment_and_outcome_are_in_the_line() -> None:
    call = ProgramCall(("/bin/a b", "c'd"), Path("/some folder"), 12, 34, {"HOME": "/x y"}, 5, (7, 8), "exit code 3")
    line, _, notes = call.render_shell().partition("  # ")
    assert shlex.split(line.removeprefix("(").removesuffix(")")) == [
        "cd", "/some folder", "&&", "setpriv", "--reuid=12", "--regid=34", "--clear-groups", "env", "HOME=/x y", "/bin/a b", "c'd",
    ]  # fmt: skip
    assert notes == "exit code 3; 5 bytes of standard input not shown; requires the file descriptors 7 8"


@pytest.mark.parametrize("word", ["\x1b[2J", "a\nb", "\x9b", "\u202e", "caf\u00e9 'x", "\udcff", "\r"])
def test_nothing_in_a_line_acts_on_a_terminal(word: str) -> None:
    line = ProgramCall((word, word), outcome=word).render_shell()
    assert line.isascii() and line.isprintable()


def test_a_plain_word_is_left_as_it_is() -> None:
    assert quote("--flag=/a/b") == "--flag=/a/b"


@pytest.mark.parametrize("secret", ["plain-secret-1", "it's a 'secret' \x1b"])
def test_a_secret_is_masked_before_it_is_quoted(secret: str) -> None:
    call = ProgramCall(
        ("/bin/x", f"--token={secret}"),
        Path("/tmp") / secret,
        environment={"TOKEN": secret},
        outcome=f"cannot {secret}",
    )
    line = call.masked(make_mask([secret.encode()])).render_shell()
    assert secret not in line and "secret" not in line and line.count("***") == 4
