"""The table of keywords says on which of play, block and task each can be."""

from __future__ import annotations

import re

import pytest

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.playbook import parse_playbook
from ktrdr_vm.host.paths import PROJECT

ROWS = re.findall(
    r"^\| (`[a-z_`, ]+) \| ((?:play|block|task|, )+) \|", (PROJECT / "docs/playbooks.md").read_text("utf-8"), re.M
)
WHERE = {
    "play": "- hosts: all\n  {}: {}\n",
    "block": "- hosts: all\n  tasks:\n    - block: []\n      {}: {}\n",
    "task": "- hosts: all\n  tasks:\n    - debug: {{}}\n      {}: {}\n",
}


@pytest.mark.parametrize("place", WHERE)
@pytest.mark.parametrize(("names", "places"), ROWS)
def test_a_keyword_is_accepted_where_the_table_says(names: str, places: str, place: str) -> None:
    for name in re.findall("[a-z_]+", names):
        # A task with one of these keys is a block.
        if (name == "hosts" and place == "play") or (name in ("block", "rescue", "always") and place != "play"):
            continue
        refused = False
        try:
            parse_playbook(WHERE[place].format(name, "null"), "p.yaml", read=lambda name: "")
        except DocumentError as error:
            refused = any(f"{name!r} is not supported" in one.message for one in error.problems)
        assert refused == (place not in places.split(", ")), f"{name} on a {place}"


def test_the_table_was_found() -> None:
    assert len(ROWS) > 25
