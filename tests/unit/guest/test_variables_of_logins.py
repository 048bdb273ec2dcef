"""The files from which programs of the guest have their variables."""

from __future__ import annotations

import shlex

import pytest

from ktrdr_vm.guest.personalize import quote_for_pam, render_exports


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("plain", "plain"),
        ("two words", "'two words'"),
        ("two\nlines", "'two lines'"),
        ("it's", "it's"),
        ("", '""'),
        ("$HOME `id`", "'$HOME `id`'"),
    ],
)
def test_a_value_is_one_line_for_programs_that_read_the_file_of_pam_alone(value: str, line: str) -> None:
    assert quote_for_pam(value) == line


@pytest.mark.parametrize("value", ["two\nlines", "a#b", "it's", " edges ", "$HOME `id`", ""])
def test_a_shell_gets_every_character(value: str) -> None:
    [word, assigned] = shlex.split(render_exports({"NAME": value}))
    assert (word, assigned) == ("export", f"NAME={value}")
