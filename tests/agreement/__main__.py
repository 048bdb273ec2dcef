"""Runs the corpus with our runner and with ansible-core, and compares outcomes and registered results: `python -m
tests.agreement VENV [PART]`. The parts are `expressions`, `modules`, `odd`, `written` and `plays`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ktrdr_vm.guest.protocol import Guest
from tests.agreement.cases.filters import make_filter_cases
from tests.agreement.cases.language import make_language_cases
from tests.agreement.cases.model import Case
from tests.agreement.cases.modules import make_module_cases, make_odd_cases
from tests.agreement.cases.plays import make_play_cases
from tests.agreement.cases.values import VARIABLES
from tests.agreement.generated import Tally, find_refused, split, write_playbook
from tests.agreement.plays import compare_plays
from tests.agreement.run import HERE, make_place, run_ours, run_theirs, serve

sys.path.insert(0, str(HERE.parent / "lab"))

from test_guest_ssh import Server

# What is compared of tasks of the written playbooks, in addition to their outcome.
_KEYS = {"of the system": ("ansible_facts",)}


def compare_written(tally: Tally, guest: Guest, ansible: Path, scratch: Path) -> None:
    """The playbooks of `playbooks/`, whose tasks depend on each other: the outcome of each task."""
    for playbook in sorted((HERE / "playbooks").glob("*.yaml")):
        found = {}
        for who in ("ours", "theirs"):
            place = make_place(scratch / f"{playbook.stem}-{who}")
            with serve(place) as port:
                variables = {"place": str(place), "port": str(port)}
                if who == "ours":
                    found[who] = run_ours(playbook, variables, guest, place.parent)
                else:
                    found[who] = run_theirs(playbook, variables, ansible, place.parent)
        ours, theirs = found["ours"], found["theirs"]
        for index in range(max(len(ours), len(theirs))):
            left, right = (rows[index] if index < len(rows) else None for rows in (ours, theirs))
            name = (left or right).name  # type: ignore[union-attr]
            if left is not None and right is not None and left.name != right.name:
                name, right = f"{left.name}, and for theirs {right.name}", None
            tally.add(Case(f"{playbook.stem}: {name}", {}, _KEYS.get(name, ())), left, right, "", {})


def compare_generated(cases: Sequence[Case], tally: Tally, guest: Guest, ansible: Path, scratch: Path) -> None:
    """The cases of expressions: one playbook for many, which nothing but its own tasks reads."""
    with ThreadPoolExecutor(1) as pool:
        waiting = []
        for number, part in enumerate(split(cases)):
            folder = scratch / f"part-{number}"
            folder.mkdir()
            whole = folder / "whole.yaml"
            write_playbook(whole, part, VARIABLES)
            refused = find_refused(whole, part)
            waiting.append(
                (part, refused, folder, pool.submit(run_theirs, whole, {}, ansible, scratch / f"part-{number}"))
            )
        for part, refused, folder, theirs in waiting:
            kept = folder / "ours" / "kept.yaml"
            kept.parent.mkdir()
            write_playbook(kept, {number: case for number, case in part.items() if number not in refused}, VARIABLES)
            ours = {row.name: row for row in run_ours(kept, {}, guest, folder)}
            answered = {row.name: row for row in theirs.result()}
            for number, case in part.items():
                name = f"case {number}"
                tally.add(case, ours.get(name), answered.get(name), refused.get(number, ""), {})


def compare_modules(
    listed: Iterable[Case], tally: Tally, guest: Guest, ansible: Path, scratch: Path, *, odd: bool = False
) -> None:
    """The cases of modules, each runner in a folder of its own. Of odd ones, those that we refuse are not run at all."""
    cases = dict(enumerate(listed))
    refused: dict[int, str] = {}
    if odd:
        playbook = scratch / "odd.yaml"
        write_playbook(playbook, cases, VARIABLES)
        for number, said in find_refused(playbook, cases).items():
            tally.add(cases.pop(number), None, None, said, {})
    rows, places = {}, {}
    for who in ("theirs", "ours"):
        place = places[who] = make_place(scratch / f"{'odd' if odd else 'modules'}-{who}")
        playbook = place.parent / "playbook" / "modules.yaml"
        playbook.parent.mkdir()
        write_playbook(playbook, cases, VARIABLES)
        if who == "ours":
            refused = find_refused(playbook, cases)
            write_playbook(
                playbook, {number: case for number, case in cases.items() if number not in refused}, VARIABLES
            )
        variables = {"place": str(place)}
        found = (
            run_ours(playbook, variables, guest, place.parent)
            if who == "ours"
            else run_theirs(playbook, variables, ansible, place.parent)
        )
        rows[who] = {row.name: row for row in found}
    for number, case in cases.items():
        ours, theirs = (rows[who].get(f"case {number}") for who in ("ours", "theirs"))
        tally.add(case, ours, theirs, refused.get(number, ""), {str(place): "PLACE" for place in places.values()})


def main() -> int:
    """Two comparisons at a time, because most of the time is spent in ansible-core, which uses one CPU."""
    ansible = Path(sys.argv[1]).absolute() / "bin"
    parts = sys.argv[2:] or ["expressions", "modules", "odd", "written", "plays"]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ktrdr-agreement-") as temporary:
        scratch = Path(temporary)
        server = Server(scratch / "sshd")

        def compare_expressions() -> Tally:
            tally = Tally()
            with server.connect() as guest:
                if "expressions" in parts:
                    compare_generated([*make_filter_cases(), *make_language_cases()], tally, guest, ansible, scratch)
            return tally

        def compare_tasks() -> Tally:
            tally = Tally()
            with server.connect() as guest:
                if "modules" in parts:
                    compare_modules(make_module_cases(), tally, guest, ansible, scratch)
                if "odd" in parts:
                    compare_modules(make_odd_cases(), tally, guest, ansible, scratch, odd=True)
                if "written" in parts:
                    compare_written(tally, guest, ansible, scratch)
                if "plays" in parts:
                    compare_plays([*make_play_cases()], tally, guest, ansible, scratch)
            return tally

        try:
            with ThreadPoolExecutor(2) as pool:
                waiting = [pool.submit(compare) for compare in (compare_expressions, compare_tasks)]
                first, second = (one.result() for one in waiting)
        finally:
            server.stop()
    tally = Tally(first.counts + second.counts, first.differences + second.differences, first.refused + second.refused)
    show(tally, time.monotonic() - begun)
    return 0 if tally.counts["cases"] and not tally.counts["differences"] else 1


def show(tally: Tally, seconds: float) -> None:
    for line in tally.refused:
        print(f"refused: {line}")
    for line in tally.differences:
        print(f"difference: {line}")
    counts = tally.counts
    print(
        f"agreement: {counts['cases']} cases in {seconds:.0f} s: {counts['agreed']} agreed, {counts['refused']} refused, "
        f"{counts['rejected by both']} rejected by both, {counts['differences']} differences"
    )


if __name__ == "__main__":
    sys.exit(main())
