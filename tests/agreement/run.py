"""Runs one playbook with our runner and with ansible-playbook. Both return a row for each finished task, in order.

Ours reaches this host through a real sshd on the loopback address; theirs is a local connection.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_vm.gates.context import GateContext
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.gates.runner import run_playbook
from ktrdr_vm.guest.protocol import Guest

HERE = Path(__file__).resolve().parent

# The report of ours has no row for an include. A rescued task is reported by ansible-core as failed.
_INCLUDES = ("include_tasks", "include_role")
_SAME = {"rescued": "failed"}


@dataclass(frozen=True)
class Row:
    """One finished task, with its outcome and its registered result as JSON would give it back."""

    name: str
    outcome: str
    result: Mapping[str, Any] = field(default_factory=dict)


def run_ours(playbook: Path, variables: Mapping[str, str], guest: Guest, scratch: Path) -> list[Row]:
    registered: dict[str, Mapping[str, Any]] = {}
    context = GateContext(
        extra_vars=dict(variables), roots=(playbook.parent,), artifacts=scratch / "fetched", environment={}, mask=str, gate_timeout=600,
        on_result=lambda name, result: registered.__setitem__(name, result),
    )  # fmt: skip
    ended = run_playbook(load_playbook(playbook), guest, context)
    # Tasks that were not reached have a row in our report and none in theirs.
    reached = [
        task for task in ended.tasks if task.module not in _INCLUDES and not task.message.startswith("not run, because")
    ]
    plain = json.loads(json.dumps(registered, default=str))
    return [Row(task.name, _SAME.get(task.outcome, task.outcome), plain.get(task.name, {})) for task in reached]


def run_theirs(playbook: Path, variables: Mapping[str, str], ansible: Path, scratch: Path) -> list[Row]:
    told = scratch / f"{playbook.stem}.jsonl"
    told.touch()
    copy = scratch / f"{playbook.stem}-copy"
    shutil.copytree(playbook.parent, copy)
    extra = json.dumps({**variables, "ansible_python_interpreter": sys.executable})
    ended = subprocess.run(
        [ansible / "ansible-playbook", "-i", "localhost,", "-c", "local", "-e", extra, copy / playbook.name],
        env={
            **os.environ, "KTRDR_TOLD": str(told), "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"), "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_RETRY_FILES_ENABLED": "false", "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(scratch / "home"), "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_DEPRECATION_WARNINGS": "false", "ANSIBLE_SYSTEM_WARNINGS": "false", "TZ": "UTC",
        },
        cwd=scratch, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    rows = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]
    if not rows:
        print(ended.stdout[-3000:], ended.stderr[-3000:])
    return [
        Row(row["name"], row["outcome"], row["result"])
        for row in rows
        if row["module"].rsplit(".", 1)[-1] not in _INCLUDES
    ]


def make_place(folder: Path) -> Path:
    """A folder to work in, with a repository beside it and a page to serve."""
    place = folder / "place"
    place.mkdir(parents=True)
    (place / "page.json").write_text('{"answer": 42}')
    repository = Path(f"{place}-repository")
    repository.mkdir()
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "base"]):
        subprocess.run(["git", *settings, *words], cwd=repository, check=True)
    return place


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(place: Path) -> Iterator[int]:
    """The port of a web server for the files of a folder."""
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(place)))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield web.server_port
    finally:
        web.shutdown()
        web.server_close()
