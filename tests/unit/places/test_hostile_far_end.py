"""A far end that sends what it may not: refused with a sentence, and nothing is written outside of the folder of the
run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import KtrdrError, UsageError
from ktrdr_vm.host.paths import Home
from ktrdr_vm.places.book import Book, Entry
from ktrdr_vm.places.far_end import FarEnd
from ktrdr_vm.places.fetch import fetch
from ktrdr_vm.places.follow import clean_event, follow
from ktrdr_vm.report.json import render_report_json
from ktrdr_vm.report.model import RunReport

ID = "20260101T000000Z-0123abcd"
RUN = "20260101T000000Z-ab12"
ENTRY = Entry(ID, "far", "demo", "", "", "2026-01-01T00:00:00Z")
STATE = {
    "request_id": ID, "instance_id": "demo", "who": "a@b", "state": "finished", "created_at": "2026", "attempt": 1, "node": "n", "why": "",
    "outcome": "passed", "exit_code": 0, "run_id": RUN,
}  # fmt: skip


def make_report(**changes: Any) -> bytes:
    words: dict[str, Any] = {
        "instance_id": "demo", "run_id": RUN, "profile": "p", "mode": "sandbox", "plan_digest": "0" * 64, "image_digest": "0" * 64,
        "outcome": "passed", "exit_code": 0, "started_at": "2026-01-01T00:00:00Z", "duration_s": 1.0,
    }  # fmt: skip
    return render_report_json(RunReport(**{**words, **changes})).encode()


class Fake:
    """A far end with one request. Each answer can be replaced."""

    def __init__(self) -> None:
        self.state: Any = dict(STATE)
        self.content = {
            "run/report.json": make_report(),
            "run/events.jsonl": b"{}\n",
            "outcome.json": b'{"message": "m"}',
        }
        self.listed: Any = None
        self.answers: dict[str, Any] = {}

    def call(self, operation: str, **words: Any) -> dict[str, Any]:
        if operation in self.answers:
            return self.answers[operation]  # type: ignore[no-any-return]
        if operation == "states":
            return {"states": [self.state]}
        if operation == "files":
            return {"files": self.listed or [[name, len(data)] for name, data in self.content.items()]}
        if operation == "contents":
            return {"contents": {name: base64.b64encode(self.content[name]).decode() for name in words["names"]}}
        assert operation == "read"
        data = self.content.get(words["name"], b"")[words["offset"] :][: 256 * 1024]
        return {"data": base64.b64encode(data).decode()}


@pytest.fixture
def far() -> Fake:
    return Fake()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "outer" / "home")


def list_all(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink()}


def run(far: Fake, home: Home) -> Any:
    return fetch(FarEnd(far.call, "far"), home, ENTRY)


def test_an_honest_far_end(far: Fake, home: Home) -> None:
    fetched = run(far, home)
    assert (fetched.run / "report.json").read_bytes() == far.content["run/report.json"]
    assert json.loads((fetched.run / "origin.json").read_text())["place"] == "far"
    assert Book(home).read(ID).accepted == 1
    # The same again changes nothing.
    assert run(far, home).run == fetched.run


NAMES = [
    "../x",
    "run/../../x",
    "/etc/x",
    "run//x",
    "run/./x",
    "run/a\nb",
    "run/" + "a" * 300,
    "run/" + "a/" * 40 + "b",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out(name: str, far: Fake, home: Home, tmp_path: Path) -> None:
    far.content[name] = b"x"
    with pytest.raises(UsageError, match="what it may not"):
        run(far, home)
    assert list_all(tmp_path) == set()


LISTS: list[Any] = [
    "x", None, [1], [["run/x"]], [["run/x", -1]], [["run/x", "1"]], [["run/x", True]], [["run/x", 1], ["run/x", 1]],
    [["run/x", 1 << 40]], [[f"run/{number}", 1] for number in range(20_000)],
]  # fmt: skip


@pytest.mark.parametrize("listed", LISTS, ids=range(len(LISTS)))
def test_lists_of_files(listed: Any, far: Fake, home: Home, tmp_path: Path) -> None:
    far.answers["files"] = {"files": listed}
    with pytest.raises(UsageError, match="what it may not"):
        run(far, home)
    assert list_all(tmp_path) == set()


@pytest.mark.parametrize("size", [0, 1, 10**6])
def test_sizes_that_differ(size: int, far: Fake, home: Home, tmp_path: Path) -> None:
    far.listed = [["run/report.json", size], ["outcome.json", 3]]
    with pytest.raises(UsageError):
        run(far, home)
    assert list_all(tmp_path) == set()


def test_an_endless_file(far: Fake, home: Home, tmp_path: Path) -> None:
    far.content["run/large"] = b"y" * 300_000
    far.answers["read"] = {"data": base64.b64encode(b"x" * 250_000).decode()}
    with pytest.raises(UsageError, match="larger than it was listed"):
        run(far, home)
    assert list_all(tmp_path) == set()


@pytest.mark.parametrize("data", [None, 1, "!", "AAA", "A" * (1 << 20)])
def test_pieces(data: Any, far: Fake, home: Home, tmp_path: Path) -> None:
    far.content["run/large"] = b"y" * 300_000
    far.answers["read"] = {"data": data}
    with pytest.raises(UsageError):
        run(far, home)
    assert list_all(tmp_path) == set()


CONTENTS: list[Any] = [
    None, [], "x", {}, {"run/report.json": "e30="}, {"run/report.json": "e30=", "run/events.jsonl": "!"},
    {"run/report.json": "e30=", "run/events.jsonl": 1}, {"run/report.json": "e30=", "run/events.jsonl": "A" * (1 << 20)},
    {"run/report.json": "e30=", "run/events.jsonl": "", "../../x": ""}, {"run/report.json": "e30=", "/etc/x": ""},
]  # fmt: skip


@pytest.mark.parametrize("contents", CONTENTS, ids=range(len(CONTENTS)))
def test_contents(contents: Any, far: Fake, home: Home, tmp_path: Path) -> None:
    far.answers["contents"] = {"contents": contents}
    with pytest.raises(UsageError, match="what it may not"):
        run(far, home)
    assert list_all(tmp_path) == set()


BUNDLES: list[Any] = [
    None, {}, [1], [{}], [{"size": 1, "sha256": "0" * 64, "tips": ["HEAD"]}], [{"size": 1, "sha256": "../x", "tips": []}],
    [{"size": -1, "sha256": "0" * 64, "tips": []}], [{"size": True, "sha256": "0" * 64, "tips": []}],
    [{"size": 1 << 60, "sha256": "0" * 64, "tips": []}], [{"size": 1, "sha256": "0" * 64, "tips": ["a" * 40] * 401}],
    [{"size": 1, "sha256": "0" * 64, "tips": ["--output=/tmp/x"]}], [{"size": 1, "sha256": "0" * 64, "tips": []}] * 21,
]  # fmt: skip


@pytest.mark.parametrize("bundles", BUNDLES, ids=range(len(BUNDLES)))
def test_bundles(bundles: Any, far: Fake) -> None:
    far.answers["bundles"] = {"bundles": bundles}
    with pytest.raises(UsageError, match="what it may not"):
        FarEnd(far.call, "far").list_bundles()


STATES: list[dict[str, Any]] = [
    {"request_id": "20260101T000000Z-ffffffff"}, {"instance_id": "other"}, {"instance_id": "../x"}, {"run_id": "../../x"}, {"run_id": "latest"},
    {"state": "done"}, {"outcome": "fine"}, {"exit_code": 99}, {"exit_code": "0"}, {"exit_code": True}, {"attempt": -1}, {"attempt": 10**9},
    {"why": "x" * 5000}, {"more": 1}, {"outcome": "failed"}, {"exit_code": 1}, {"run_id": "20260101T000000Z-ffff"},
]  # fmt: skip


@pytest.mark.parametrize("changes", STATES, ids=str)
def test_states(changes: dict[str, Any], far: Fake, home: Home, tmp_path: Path) -> None:
    far.state |= changes
    with pytest.raises(UsageError):
        run(far, home)
    assert list_all(tmp_path) == set()


REPORTS: list[bytes] = [
    b"", b"{}", b"[" * 100_000, make_report(instance_id="other"), make_report(run_id="20260101T000000Z-cdef"), make_report(base_commit="a" * 40),
    make_report(exit_code=77), make_report(outcome="failed", exit_code=1),
]  # fmt: skip


@pytest.mark.parametrize("report", REPORTS, ids=range(len(REPORTS)))
def test_reports_of_another_run(report: bytes, far: Fake, home: Home, tmp_path: Path) -> None:
    far.content["run/report.json"] = report
    with pytest.raises(UsageError):
        run(far, home)
    assert list_all(tmp_path) == set()


def test_a_run_that_is_here_already_is_kept(far: Fake, home: Home) -> None:
    path = home.run("demo", RUN)
    path.mkdir(parents=True)
    (path / "report.json").write_text("mine")
    with pytest.raises(UsageError, match="another run"):
        run(far, home)
    assert (path / "report.json").read_text() == "mine"


def test_results_come_from_one_attempt(far: Fake, home: Home) -> None:
    book = Book(home)
    book.accept(ENTRY, 2, RUN)
    with pytest.raises(UsageError, match="accepted from attempt 2"):
        fetch(FarEnd(far.call, "far"), home, book.read(ID))


@pytest.mark.parametrize(
    "line",
    [b"", b"x", b"[]", b'{"event": 1}', b"[" * 100_000, b'{"event": "task_finished", "duration_s": "x"}',
     b'{"event": "phase_started", "duration_s": 1e400, "phase": {"a": 1}}', b'{"event": "resource", "verb": [], "duration_s": null}'],
)  # fmt: skip
def test_events_are_data(line: bytes) -> None:
    event = clean_event(line)
    assert all(isinstance(value, (str, int, float)) for value in event.values())
    assert event == {} or isinstance(event["duration_s"], float)


def test_an_event_without_an_end(far: Fake) -> None:
    far.answers["read"] = {"data": base64.b64encode(b"x" * 200_000).decode()}
    with pytest.raises(UsageError, match="without an end"):
        follow(FarEnd(far.call, "far"), ID, on_state=lambda _: None, on_event=lambda _: None, poll=0)


@pytest.mark.parametrize(
    "answer", [{}, {"states": None}, {"states": [1]}, {"states": [STATE, STATE]}, {"states": [{}] * 6000}], ids=range(5)
)
def test_lists_of_states(answer: Any, far: Fake) -> None:
    far.answers["states"] = answer
    with pytest.raises(UsageError):
        FarEnd(far.call, "far").state(ID)


@pytest.mark.parametrize("nodes", [None, "n1", [1], ["-x"], ["../x"], ["n1 n2"], ["n1\n"], ["n"] * 6000], ids=range(8))
def test_nodes(nodes: Any, far: Fake) -> None:
    """Each becomes an option of sbatch."""
    far.answers["nodes"] = {"nodes": nodes}
    with pytest.raises(UsageError, match="what it may not"):
        FarEnd(far.call, "far").list_nodes()


@pytest.mark.parametrize("rows", [[1], [{}], [{"instance_id": "../x"}], [{"instance_id": "a\x1b[2J"}]])
def test_instances(rows: Any, far: Fake) -> None:
    far.answers["instances"] = {"instances": rows}
    with pytest.raises(KtrdrError):
        FarEnd(far.call, "far").list_instances()


def test_facts_are_scalars(far: Fake) -> None:
    far.answers["facts"] = {
        "a": {"x": 1},
        "b": "y" * 10_000,
        "c": float("inf"),
        **{str(number): 1 for number in range(1000)},
    }
    facts = FarEnd(far.call, "far").facts()
    assert "a" not in facts and "c" not in facts and len(facts["b"]) == 400 and len(facts) < 50
