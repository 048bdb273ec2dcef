"""Our runner and ansible-core's own over the same playbooks, task by task.

Ours reaches this host through a real sshd on the loopback address; theirs is a local connection. Both get a folder of their own.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lab"))

from test_guest_ssh import Server  # noqa: E402

from ktrdr_vm.gates.context import GateContext  # noqa: E402
from ktrdr_vm.gates.load import load_playbook  # noqa: E402
from ktrdr_vm.gates.runner import run_playbook  # noqa: E402

# What a rescue does is told by what runs after it; ansible-core tells the failed task as failed.
_SAME = {"rescued": "failed"}


def run_ours(playbook: Path, variables: dict[str, str], server: Server, scratch: Path) -> list[tuple[str, str]]:
    with server.connect() as guest:
        context = GateContext(
            extra_vars=dict(variables), roots=(playbook.parent,), artifacts=scratch / "fetched",
            environment={}, mask=str, gate_timeout=600,
        )  # fmt: skip
        result = run_playbook(load_playbook(playbook), guest, context)
    # We name what was not reached, with the reason; ansible-core says nothing of it.
    reached = [task for task in result.tasks if task.module != "include_tasks" and not task.message.startswith("not run, because")]
    return [(task.name, _SAME.get(task.outcome, task.outcome)) for task in reached]


def run_theirs(playbook: Path, variables: dict[str, str], ansible: Path, scratch: Path) -> list[tuple[str, str]]:
    told = scratch / "told.jsonl"
    told.touch()
    copy = scratch / "corpus"
    shutil.copytree(playbook.parent, copy)
    ended = subprocess.run(
        [ansible / "ansible-playbook", "-i", "localhost,", "-c", "local", "-e", json.dumps({**variables, "ansible_python_interpreter": sys.executable}), copy / playbook.name],
        env={
            **os.environ, "KTRDR_TOLD": str(told), "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"), "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_RETRY_FILES_ENABLED": "false", "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(scratch / "home"), "ANSIBLE_NOCOLOR": "1",
        },
        cwd=scratch, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    if not rows:
        print(ended.stdout[-3000:], ended.stderr[-3000:])
    return [(row["name"], row["outcome"]) for row in rows if row["name"] != "included"]


def make_place(scratch: Path) -> Path:
    """A folder to work in, with a repository beside it and a page to serve."""
    place = scratch / "place"
    place.mkdir()
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


def main() -> int:
    ansible = Path(sys.argv[1]).absolute() / "bin"
    compared = equal = 0
    with tempfile.TemporaryDirectory(prefix="ktrdr-agreement-") as temporary:
        scratch = Path(temporary)
        server = Server(scratch / "sshd")
        try:
            for playbook in sorted((HERE / "corpus").glob("*.yaml")):
                found = {}
                for who in ("ours", "theirs"):
                    folder = scratch / f"{playbook.stem}-{who}"
                    folder.mkdir()
                    place = make_place(folder)
                    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(place)))
                    threading.Thread(target=web.serve_forever, daemon=True).start()
                    variables = {"place": str(place), "port": str(web.server_port)}
                    found[who] = (
                        run_ours(playbook, variables, server, folder) if who == "ours" else run_theirs(playbook, variables, ansible, folder)
                    )
                    web.shutdown()
                    web.server_close()
                ours, theirs = found["ours"], found["theirs"]
                for index in range(max(len(ours), len(theirs))):
                    left = ours[index] if index < len(ours) else ("nothing", "")
                    right = theirs[index] if index < len(theirs) else ("nothing", "")
                    compared += 1
                    equal += left == right
                    if left != right:
                        print(f"{playbook.stem}: ours {left[0]} {left[1]}, theirs {right[0]} {right[1]}")
        finally:
            server.stop()
    print(f"agreement: {compared} tasks compared, {equal} equal")
    return 0 if compared and compared == equal else 1


if __name__ == "__main__":
    sys.exit(main())
