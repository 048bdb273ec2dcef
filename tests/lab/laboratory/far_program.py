"""`ktrdr-vm` of a far end with a stand-in for the VM: a run writes events, a gate, artifacts and a commit, and ends
after a time.

FAR_SECONDS is the length of a run, FAR_EXIT its exit code, and FAR_FAIL=N lets the first N attempts end with exit code
3. FAR_GUEST is a configuration of OpenSSH by which every instance is reached.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import time
from pathlib import Path

from ktrdr_vm.cli import ssh
from ktrdr_vm.cli.main import main
from ktrdr_vm.errors import HostError, LimitReached
from ktrdr_vm.evidence.run_directory import RunDirectory, make_run_id
from ktrdr_vm.host import process
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.paths import Home
from ktrdr_vm.host.process import run
from ktrdr_vm.host.runs import create_run
from ktrdr_vm.inputs.resolve import Gathered
from ktrdr_vm.places import attempt, open
from ktrdr_vm.places.request import Request
from ktrdr_vm.places.secret_values import Values
from ktrdr_vm.report.model import Commits, GateResult, RunReport
from ktrdr_vm.run.assembly import Assembled, write_report
from ktrdr_vm.run.listener import Listener
from ktrdr_vm.run.recorder import Recorder

SECRET = "hunter2hunter2"
WHO = {
    "GIT_AUTHOR_NAME": "g",
    "GIT_AUTHOR_EMAIL": "g@x",
    "GIT_COMMITTER_NAME": "g",
    "GIT_COMMITTER_EMAIL": "g@x",
    "HOME": "/nonexistent",
}


def execute(gathered: Gathered, home: Home, request: Request, listener: Listener, values: Values) -> RunReport | None:
    """A run without a VM."""
    home.create()
    if request.warm:
        (home.root / "warm").write_text(gathered.plan.profile.image.recipe)
        return None
    plan = gathered.plan
    run_id, began = make_run_id(), now()
    counter = home.root / "runs-begun"
    with counter.open("a") as file:
        file.write(f"{request.request_id}\n")
    if counter.read_text().count(request.request_id) <= int(os.environ.get("FAR_FAIL", "0")):
        raise HostError("there is no memory for this instance", where="host", hint="wait")
    path = create_run(home, request.instance_id, run_id)

    def mask(text: str) -> str:
        return text.replace(SECRET, "***")

    recorder = Recorder(RunDirectory(path, request.instance_id, plan.facts.owner, mask), listener)
    recorder.directory.event("run_started", profile=plan.profile.name, plan_digest=plan.digest)
    listener.started(path, mask)
    ledger = home.instance(request.instance_id).ledger
    ledger.parent.mkdir(parents=True, exist_ok=True)
    home.instance(request.instance_id).console.write_text("a line of the console\n")
    interrupted, code = False, int(os.environ.get("FAR_EXIT", "0"))
    commits: tuple[Commits, ...] = ()
    try:
        with contextlib.suppress(LimitReached), recorder.phase("gates"):
            interrupted, code = True, 130
            work(recorder, ledger, request.instance_id)
            interrupted, code = False, int(os.environ.get("FAR_EXIT", "0"))
        # Also at the limit of the job's time: what the workload has until then is brought back.
        commits = make_commit(gathered)
        (path / "artifacts" / "out").mkdir(parents=True)
        (path / "artifacts" / "out" / "result.txt").write_text(
            (gathered.repository.root / "README").read_text() if gathered.repository else "none"
        )
        # That a value has arrived, without the value.
        for name, value in values.items():
            (path / "artifacts" / "out" / name).write_text(hashlib.sha256(value).hexdigest())
    except KeyboardInterrupt:
        interrupted, code = True, 130
    report = RunReport(
        instance_id=request.instance_id, run_id=run_id, profile=plan.profile.name, mode="sandbox", plan_digest=plan.digest,
        image_digest=plan.facts.image.digest, outcome="interrupted" if interrupted else "passed" if code == 0 else "failed", exit_code=code,
        started_at=began, duration_s=1.0, base_ref=plan.facts.base_ref, base_commit=plan.facts.base_commit, phases=tuple(recorder.phases),
        gates=(GateResult("unit", "passed", began, 1.0),), commits=commits,
    )  # fmt: skip
    recorder.directory.write("plan.json", "{}\n")
    write_report(recorder.directory, Assembled(report), lambda _: None)
    ledger.unlink()
    home.instance(request.instance_id).console.unlink()
    return report


def work(recorder: Recorder, ledger: Path, instance_id: str) -> None:
    """A task and a row of the ledger ten times in a second."""
    end, count = time.monotonic() + float(os.environ.get("FAR_SECONDS", "0")), 0
    while count < 5 or time.monotonic() < end:
        recorder.on_gate(
            {"event": "task_finished", "gate": "unit", "task": f"task {count}", "outcome": "ok", "duration_s": 0.1}
        )
        with ledger.open("a") as file:
            file.write(
                f'{{"time": "{now()}", "instance_id": "{instance_id}", "host": "{SECRET}.example", "n": {count}}}\n'
            )
        count += 1
        time.sleep(0.1)


def make_commit(gathered: Gathered) -> tuple[Commits, ...]:
    """A commit, as `pull` fetches it: a branch with a byte that refs of ours escape."""
    if gathered.repository is None:
        return ()
    root, commit = gathered.repository.root, gathered.repository.commit

    def git(*words: str) -> str:
        return run(["git", *words], cwd=root, timeout=60, environment=WHO).text.strip()

    made = git("commit-tree", f"{commit}^{{tree}}", "-p", commit, "-m", "work")
    ref = f"{gathered.plan.identity.ref_prefix}feat=3dx"
    git("update-ref", ref, made)
    return (Commits(ref, made, ()),)


def program() -> tuple[str, ...]:
    return (sys.executable, __file__)


if __name__ == "__main__":
    attempt.require_root = lambda: None
    attempt.run_request = functools.partial(attempt.run_request, execute=execute)
    open.find_program = program
    if guest := os.environ.get("FAR_GUEST"):
        vars(ssh)["_make_options"] = lambda _instance_id, _expect="": ["-F", guest]
    # Where the stand-ins of Slurm's programs are.
    process.SYSTEM_PATH = f"{os.environ.get('FAR_PATH', '/nonexistent')}:{process.SYSTEM_PATH}"
    main()
