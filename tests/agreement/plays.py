"""The comparison of plays: many in one playbook, each told from the next by its first task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ktrdr_vm.errors import DocumentError
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.guest.protocol import Guest
from tests.agreement.cases.model import Case
from tests.agreement.cases.plays import PlayCase
from tests.agreement.generated import Tally
from tests.agreement.run import Row, run_ours, run_theirs

Numbered = Mapping[int, PlayCase]
Runner = Callable[[Path], list[Row]]
_CHUNK = 60


def compare_plays(cases: Sequence[PlayCase], tally: Tally, guest: Guest, ansible: Path, scratch: Path) -> None:
    numbered = dict(enumerate(cases))
    refused = {number: said for number, case in numbered.items() if (said := _find_refused(scratch, number, case))}
    # What we refuse is not asked of ansible-core: it would refuse whole playbooks, and each needs one more.
    kept = {number: case for number, case in numbered.items() if number not in refused}
    ours = _run(kept, scratch / "ours", lambda path: run_ours(path, {}, guest, path.parent.parent))
    theirs = _run(kept, scratch / "theirs", lambda path: run_theirs(path, {}, ansible, path.parent.parent))
    # Their `meta` has a row whatever it does, ours only when it fails; the tasks after it show what it did.
    kept_rows = [
        {number: [row for row in rows if row.name != "meta"] for number, rows in found.items()}
        for found in (ours, theirs)
    ]
    for number, case in numbered.items():
        left, right = (_sum_up(rows.get(number, [])) for rows in kept_rows)
        if right.outcome == left.outcome == "failed" and not right.result["rows"]:
            # It ended ansible-playbook before the task had a row.
            left = right
        tally.add(Case(case.title, {}, ("rows",)), left, right, refused.get(number, ""), {})


def _sum_up(rows: Sequence[Row]) -> Row:
    """All tasks of a play as one row; it failed if one of them did."""
    shown = [[row.name, row.outcome, row.result.get("msg") if row.name.startswith("shown") else None] for row in rows]
    bad = not rows or any(row.outcome == "failed" for row in rows)
    reasons = [str(row.result.get("msg", "")) for row in rows if row.outcome == "failed"]
    return Row("", "failed" if bad else "done", {"rows": shown, "msg": reasons[0] if reasons else ""})


def _write(folder: Path, cases: Numbered) -> Path:
    (folder / "playbook").mkdir(parents=True, exist_ok=True)
    plays = []
    for number, case in cases.items():
        first = {"name": f"case {number}", "debug": {}}
        key = "pre_tasks" if case.play.get("roles") or case.play.get("pre_tasks") else "tasks"
        play = {"hosts": "all", "gather_facts": False, "ignore_errors": True, **case.play}
        # Results of ours are known by the names of their tasks.
        names = {"shown": f"shown {number}"}
        tasks = [{**one, "name": names.get(one.get("name"), one.get("name"))} for one in case.play.get(key) or []]
        plays.append({**play, key: [first, *tasks]})
        for name, data in case.files.items():
            path = folder / "playbook" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data))
    path = folder / "playbook" / "plays.yaml"
    path.write_text("".join(f"- {json.dumps(play)}\n" for play in plays))
    return path


def _find_refused(scratch: Path, number: int, case: PlayCase) -> str:
    try:
        load_playbook(_write(scratch / f"parsed-{number}", {number: case}))
    except DocumentError as error:
        return error.problems[0].message
    return ""


def _run(cases: Numbered, scratch: Path, run: Runner) -> dict[int, list[Row]]:
    """The rows of each play. A play that fails ends a playbook, so that the plays after it need another one."""
    found: dict[int, list[Row]] = {}
    waiting = [list(cases)[start : start + _CHUNK] for start in range(0, len(cases), _CHUNK)]
    for turn in range(10_000):
        if not waiting:
            break
        part = waiting.pop()
        rows = run(_write(scratch / str(turn), {number: cases[number] for number in part}))
        reached: list[int] = []
        for row in rows:
            if row.name.startswith("case "):
                reached.append(int(row.name.removeprefix("case ")))
                found[reached[-1]] = []
            elif reached:
                found[reached[-1]].append(row)
        rest = part[part.index(reached[-1]) + 1 :] if reached else part
        if not reached and len(part) > 1:
            waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
        elif reached and rest:
            waiting.append(rest)
    return found
