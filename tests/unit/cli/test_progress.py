"""What goes on, on a terminal: names of an untrusted branch are letters there."""

from __future__ import annotations

import pytest
from rich.text import Text

from ktrdr_vm.cli.progress_terminal import make_spinner


@pytest.mark.parametrize(
    "name", ["[/x] closes nothing", "[bold red]PASSED[/]", "[link=http://evil.test]report[/link]", "\x1b[2J"]
)
def test_what_stands_in_brackets_is_no_markup(name: str) -> None:
    """rich takes a plain text for markup: the first of these ended the program with its own error, the third was a
    link."""
    text = make_spinner(name).text
    assert isinstance(text, Text) and text.plain == name.replace("\x1b", "\\x1b") and text.spans == []
