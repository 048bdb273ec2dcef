"""The language of docs, help, messages, docstrings and comments: the length of lines, and words that the glossary
replaced."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ktrdr_vm.cli.main import _HELP, cli
from ktrdr_vm.host.paths import PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "examples").glob("*/README.md")),
]
LONGEST = 120
IDS = [str(page.relative_to(PROJECT)) for page in PAGES]


def find_prose(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line outside of code blocks and of parts that a script writes between two comments."""
    fenced = generated = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif line.startswith("<!--"):
            generated = not line.startswith("<!-- end") and not line.endswith("end -->")
        elif not fenced and not generated and not line.startswith("    "):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_lines_fit(page):
    def may_be_long(line: str) -> bool:
        return line.startswith(("|", "![")) or "://" in line

    found = [
        number
        for number, line in find_prose(page.read_text(encoding="utf-8"))
        if len(line) > LONGEST and not may_be_long(line)
    ]
    assert not found, f"lines longer than {LONGEST} characters: {found}"


# -- docstrings -----------------------------------------------------------------------------------------------------


def find_docstrings() -> Iterator[tuple[str, str]]:
    """Place and text of each docstring of the package, those of fields included."""
    for path in sorted((PROJECT / "ktrdr_vm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield f"{path.relative_to(PROJECT)}:{node.lineno}", node.value.value


def test_no_docstring_asks():
    assert [where for where, text in find_docstrings() if re.search(r"\?(\s|$)", text)] == []


# -- words ----------------------------------------------------------------------------------------------------------

# Whole words, in any case, and what to say in their place.
RETIRED = {
    r"awake|asleep|sleeps?|sleeping|wakes?|woken": "running, suspended, resumed",
    r"lends?|lent|lending": "hot-plug; loan",
    r"leftovers?": "orphan",
    r"stands? still|standing still": "paused",
    r"(take|taken|takes|took) back|(give|given|gives|gave) (back|again)": "revoke, remove, reapply",
    r"lets? go of": "release",
    r"goes away|goes with it|go with it": "removed with",
    r"beforehand": "pre-approval",
    r"hears?|heard": "notify",
    r"looks? (at|for|again)|looked (at|for)": "check, search, poll",
    r"vouch(es)?": "CA bundle",
    r"mends?|mended": "repair",
    r"believed?": "tested",
    r"nobody asked|asked twice": "repeated",
    r"anew": "again",
    r"(?<!virtual )machines?(?!-id| type)": "VM, instance",
    r"rooms?|floors?|houses?": "layer, package",
    r"desks?": "supervisor",
    r"living": "running",
}


def find_retired(text: str) -> list[str]:
    """Retired words in a text, code and the targets of links excepted, each with what to say."""
    plain = " ".join(re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", "", text).split())
    return [
        f"{found[0]!r}: say {instead}"
        for words, instead in RETIRED.items()
        for found in re.finditer(rf"\b({words})\b", plain, re.IGNORECASE)
    ]


def read_prose(page: Path) -> str:
    """The prose and the tables of a page."""
    return "\n".join(line for _, line in find_prose(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_page_has_a_retired_word(page):
    assert find_retired(read_prose(page)) == []


def find_code_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, each comment, and each text that is passed to an error, such as its hint."""
    with tokenize.open(path) as file:
        source = file.read()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
        elif isinstance(node, ast.Call) and re.search(
            r"(Error|Problem|Stop|Failure|Check|Obstacle)\b", ast.unparse(node.func)
        ):
            texts = (
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            yield node.lineno, " ".join(texts)
    with path.open("rb") as file:
        yield from (
            (one.start[0], one.string) for one in tokenize.tokenize(file.readline) if one.type == tokenize.COMMENT
        )


CODE = sorted((PROJECT / "ktrdr_vm").rglob("*.py"))


@pytest.mark.parametrize("path", CODE, ids=[str(path.relative_to(PROJECT)) for path in CODE])
def test_no_text_of_the_code_has_a_retired_word(path):
    assert [(line, found) for line, text in find_code_texts(path) if (found := find_retired(text))] == []


SHIPPED = [
    PROJECT / "Makefile",
    *sorted((PROJECT / "profiles").rglob("*.yaml")),
    *sorted((PROJECT / "playbooks").rglob("*.yaml")),
    PROJECT / "ktrdr_vm/guest/data/guide.md.j2",
]


@pytest.mark.parametrize("path", SHIPPED, ids=[str(path.relative_to(PROJECT)) for path in SHIPPED])
def test_no_shipped_document_has_a_retired_word(path):
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert [
        (number, found)
        for number, line in lines
        if (found := find_retired(line)) and not re.match(r"\s+sleep \d", line)
    ] == []


def find_helps(command: click.Command, words: str) -> Iterator[tuple[str, str]]:
    """Words of each command with its help, and of each option with its own."""
    yield words, command.help or ""
    yield from ((f"{words} {one.opts[0]}", getattr(one, "help", "") or "") for one in command.params)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from find_helps(found, f"{words} {name}")


def test_no_help_has_a_retired_word():
    helps = [*find_helps(cli, "ktrdr-vm"), *(("ktrdr-vm --help", text) for text in _HELP.values())]
    assert len(helps) > 100
    assert [(where, found) for where, text in helps if (found := find_retired(text))] == []


def test_each_help_is_a_sentence():
    helps = [(where, text) for where, text in find_helps(cli, "ktrdr-vm") if text]
    assert [where for where, text in helps if not re.match(r"[A-Z]", text) or not text.rstrip().endswith(".")] == []
