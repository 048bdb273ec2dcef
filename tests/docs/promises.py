"""Every sentence of the pages that promise protection, with the tests that show it.

`tests/docs/promises/<page>.yaml` lists the sentences of a page in their order. A sentence has `tests`, each as
`file::function`, or `no_promise`, which says what it is instead: one of `KINDS`.

`python tests/docs/promises.py --write` adds new sentences, without tests, and removes those that are gone.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from ktrdr_vm.host.paths import PROJECT

PAGES = (
    "SECURITY.md",
    "docs/egress.md",
    "docs/escalations.md",
    "docs/owner-policy.md",
    "docs/broker.md",
    "docs/telemetry.md",
    "docs/verify.md",
    "docs/instances.md",
    "docs/report.md",
    "docs/places.md",
    "docs/profile.md",
    "docs/files.md",
    "docs/images.md",
    "docs/reliability.md",
    "docs/for-agents.md",
    "docs/for-owners.md",
    "docs/for-reviewers.md",
    "docs/first-profile.md",
    "docs/playbooks.md",
    "docs/templates.md",
    "docs/python.md",
    "README.md",
    "docs/coding-agents.md",
    "docs/editors.md",
    "docs/top.md",
    "docs/hosts.md",
    "docs/testing.md",
)
STORED = Path(__file__).parent / "promises"
KINDS = {
    "definition": "says what a word or a field means",
    "advice": "says what a person should do",
    "limit": "says what is not protected, or cannot be",
    "reason": "says why, of something that another sentence promises",
    "elsewhere": "leads to another page, section or command",
    "world": "says how other programs or services behave",
}

_END = re.compile(r"(?<=[.:?])\s+(?=[A-Z`*\[(\"“])")

# Rows that a run writes, which tests/docs/test_hosts_page.py compares with what it recorded.
_GENERATED = re.compile(r"<!-- from hosts.json -->.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Sentence:
    """A sentence of a page, in Markdown, and what the page's list says of it."""

    says: str
    tests: tuple[str, ...] = ()
    no_promise: str = ""


def find_sentences(markdown: str) -> list[str]:
    """Each sentence of the paragraphs, list items and table cells, in their order; headings, code blocks and the table
    of the last run on test hosts are none. Cells of one word have no sentence."""
    markdown = _GENERATED.sub("", markdown)
    found: list[str] = []
    heading = False
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        heading = token.type in ("heading_open", "th_open") or (heading and token.type == "inline")
        if token.type != "inline" or heading:
            continue
        for said in _END.split(" ".join(token.content.split())):
            if " " in said and not said.startswith("![") and said not in found:
                found.append(said)
    return found


def find_stored(page: str) -> Path:
    """The list of a page."""
    return STORED / f"{Path(page).stem.lower()}.yaml"


def read_stored(page: str) -> list[Sentence]:
    """What the list of the page says now; nothing if there is none."""
    path = find_stored(page)
    rows: list[dict[str, Any]] = (yaml.safe_load(path.read_text(encoding="utf-8")) or []) if path.exists() else []
    return [Sentence(row["says"], tuple(row.get("tests", ())), row.get("no_promise", "")) for row in rows]


def write_stored(page: str) -> None:
    """Bring the list into the order of the page; what is known of a sentence stays."""
    known = {one.says: one for one in read_stored(page)}
    rows: list[dict[str, Any]] = []
    for said in find_sentences((PROJECT / page).read_text(encoding="utf-8")):
        one = known.get(said, Sentence(said))
        rows.append({"says": said, **({"no_promise": one.no_promise} if one.no_promise else {"tests": [*one.tests]})})
    find_stored(page).write_text(yaml.safe_dump(rows, allow_unicode=True, sort_keys=False, width=110), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    for named in PAGES:
        write_stored(named)
