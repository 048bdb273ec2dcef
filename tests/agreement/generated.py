"""The generated corpus: cases written as playbooks, and the comparison of what both runners made of them.

Each task stands on one line of its playbook, so that the line of an error names the case that our parser refuses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.load import load_playbook
from tests.agreement.cases.model import Case
from tests.agreement.run import Row

# A playbook may have 256 KiB.
CHUNK = 400
_HEAD = 5


def write_playbook(path: Path, cases: Mapping[int, Case], variables: Mapping[str, Any]) -> None:
    """The tasks of the cases, named by their numbers, one on a line after `_HEAD` lines."""
    lines = [
        "- hosts: all",
        "  gather_facts: false",
        f"  vars: {json.dumps(variables, ensure_ascii=False)}",
        "  ignore_errors: true",
        "  tasks:",
    ]
    for number, case in cases.items():
        lines.append(f"    - {json.dumps({'name': f'case {number}', **case.task}, ensure_ascii=False)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_refused(path: Path, cases: Mapping[int, Case]) -> dict[int, str]:
    """The cases that our parser refuses, each with its first error."""
    try:
        load_playbook(path)
    except DocumentError as error:
        numbers = list(cases)
        found: dict[int, str] = {}
        for problem in error.problems:
            found.setdefault(numbers[problem.line - _HEAD - 1], problem.message)
        return found
    return {}


@dataclass
class Tally:
    """The numbers of a comparison, and a line for each difference and each refusal."""

    counts: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def add(self, case: Case, ours: Row | None, theirs: Row | None, refusal: str, hide: Mapping[str, str]) -> None:
        """Compare one case. `hide` replaces texts that differ by nature, such as the folder of each runner."""
        self.counts["cases"] += 1
        failed = theirs is not None and theirs.outcome in ("ignored", "failed")
        if refusal:
            self.counts["rejected by both" if failed else "refused"] += 1
            if not failed:
                self.refused.append(f"{case.title!r}: {refusal}")
            return
        shown = [_show(case, row, hide) for row in (ours, theirs)]
        if shown[0] == shown[1]:
            self.counts["agreed"] += 1
            return
        self.counts["differences"] += 1
        why = [
            str(row.result.get("msg", ""))[:200] if row and row.outcome in ("ignored", "failed") else ""
            for row in (ours, theirs)
        ]
        self.differences.append(f"{case.title!r}: ours {shown[0]} {why[0]}, theirs {shown[1]} {why[1]}")


def _show(case: Case, row: Row | None, hide: Mapping[str, str]) -> str:
    """The outcome and the compared parts of the result, as text that distinguishes types."""
    if row is None:
        return "nothing"
    # Of a failure only the exit code is compared: messages have their own words.
    keys = set(case.keys) & {"rc"} if row.outcome == "ignored" else case.keys
    text = f"{row.outcome} {json.dumps({key: _without_internals(row.result.get(key)) for key in keys}, sort_keys=True)}"
    for found, shown in hide.items():
        text = text.replace(found, shown)
    return text


def _without_internals(value: Any) -> Any:
    """Results of items without the keys that only callbacks see."""
    if isinstance(value, list):
        return [_without_internals(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_internals(one) for key, one in value.items() if not str(key).startswith("_ansible_")}
    return value


def split(cases: Sequence[Case]) -> Iterator[dict[int, Case]]:
    """The cases by number, in parts that fit into one playbook."""
    for start in range(0, len(cases), CHUNK):
        yield dict(enumerate(cases[start : start + CHUNK], start))
