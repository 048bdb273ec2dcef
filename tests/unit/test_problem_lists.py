"""A list of problems is bounded, says each thing a few times, and how many more there are."""

from __future__ import annotations

import re

import pytest

from ktrdr_vm.errors import DocumentError, Problem, summarize
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.profile.load import load_profile
from ktrdr_vm.profile.strict_yaml import load_yaml

HEAD = "version: 1\nname: t\nimage: debian-13-docker\n"


@pytest.mark.parametrize(
    ("act", "count"),
    [
        (lambda: load_profile(HEAD + "".join(f"k{number}: 1\n" for number in range(300)), "p", read=None), 300),  # type: ignore[arg-type]
        (lambda: load_yaml("".join(f"k{number}: *a\n" for number in range(300)), "p"), 300),
        (lambda: parse_playbook("- hosts: all\n  tasks:\n" + "    - {name: x, no_such: {}}\n" * 300, "p"), 300),
    ],
    ids=["unknown keys", "aliases", "modules"],
)
def test_what_is_wrong_everywhere_is_said_a_few_times_and_counted(act: object, count: int) -> None:
    with pytest.raises(DocumentError) as caught:
        act()  # type: ignore[operator]
    lines = str(caught.value).splitlines()
    shown = [line for line in lines if not line.startswith("…")]
    more = sum(map(int, re.findall(r"and (\d+) more", str(caught.value))))
    assert len(shown) + more == count == len(caught.value.problems) and len(lines) < 20


def test_different_problems_are_cut_and_the_rest_counted() -> None:
    lines = summarize([Problem("p", number, 1, "", f"problem {number}") for number in range(100)])
    assert len(lines) == 41 and lines[-1] == "… and 60 more problems"


def test_a_document_without_end_stops() -> None:
    with pytest.raises(DocumentError, match="more than 1000 problems"):
        load_yaml("a: *x\n" * 5000, "p")
