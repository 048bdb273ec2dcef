"""Lines are plain outside of a terminal, where Rich is not imported, and coloured on one."""

from __future__ import annotations

import io
import sys

import pytest

from ktrdr_vm.cli.progress_printer import escape_span, make_printer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_file_gets_plain_lines_without_the_import_of_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ktrdr_vm.cli.progress_terminal", raising=False)
    stream = io.StringIO()
    printer = make_printer(stream)
    printer.begin()
    printer.work_on("a step")
    printer.print(("changed ", "yellow"), escape_span("a\x1b[2J[bold]b", "dim"))
    printer.print()
    printer.end()
    assert stream.getvalue() == "changed a\\x1b[2J[bold]b\n\n"
    assert "ktrdr_vm.cli.progress_terminal" not in sys.modules


def test_a_terminal_gets_colour_and_no_markup() -> None:
    stream = Terminal()
    make_printer(stream).print(("failed", "bold red"), escape_span(" [/x] [link=http://evil.test]report[/link]"))
    assert "\x1b[1;31mfailed" in stream.getvalue()
    assert "[/x] [link=http://evil.test]report[/link]\n" in stream.getvalue()


@pytest.mark.parametrize(
    ("stream", "variables", "coloured"),
    [
        (io.StringIO, {"FORCE_COLOR": "1"}, True),
        (io.StringIO, {"FORCE_COLOR": ""}, False),
        (io.StringIO, {"TTY_COMPATIBLE": "1"}, True),
        (Terminal, {"TTY_COMPATIBLE": "0"}, False),
        (Terminal, {"TTY_COMPATIBLE": "0", "FORCE_COLOR": "1"}, False),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (Terminal, {}, True),
    ],
)
def test_the_environment_decides_as_elsewhere(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], variables: dict[str, str], coloured: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = stream()
    make_printer(made).print(("text", "red"))
    assert ("\x1b[31m" in made.getvalue()) == coloured and "text" in made.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = Closed()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    make_printer(stream).print(("text", ""))
