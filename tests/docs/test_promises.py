"""Each sentence of the pages that promise protection has its tests, or is no promise."""

from __future__ import annotations

import ast
import functools

import pytest

from ktrdr_vm.host.paths import PROJECT
from tests.docs.promises import KINDS, PAGES, find_sentences, read_stored


@functools.cache
def find_tests(path: str) -> frozenset[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((PROJECT / path).read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("page", PAGES)
def test_each_sentence_is_listed_once_in_the_order_of_the_page(page: str) -> None:
    found = find_sentences((PROJECT / page).read_text(encoding="utf-8"))
    assert [one.says for one in read_stored(page)] == found, "python tests/docs/promises.py --write"


@pytest.mark.parametrize("page", PAGES)
def test_each_sentence_has_tests_that_exist_or_is_no_promise(page: str) -> None:
    wrong = []
    for one in read_stored(page):
        if bool(one.tests) == bool(one.no_promise) or (one.no_promise and one.no_promise not in KINDS):
            wrong.append(one.says)
        for test in one.tests:
            path, _, name = test.partition("::")
            if not (PROJECT / path).is_file() or name not in find_tests(path):
                wrong.append(f"{test}: {one.says}")
    assert not wrong


def test_sentences_of_paragraphs_lists_and_tables_are_found() -> None:
    page = (
        "# A heading is none\n\nOne is here. Two\ngoes on: three, e.g. four. `five` begins so.\n\n```sh\nno code\n```\n\n"
        "| head of it | no |\n| --- | --- |\n| cell | Six is in a cell. Seven too |\n\n- eight is in a list\n\n"
        "<!-- from hosts.json -->\n\n| a row | of a run |\n| --- | --- |\n| nine was run | here |\n\n<!-- end -->\n"
    )
    assert find_sentences(page) == [
        "One is here.",
        "Two goes on: three, e.g. four.",
        "`five` begins so.",
        "Six is in a cell.",
        "Seven too",
        "eight is in a list",
    ]
