"""Slurm: requests as jobs of sbatch. Their state is read from their files; squeue only says why one waits."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import HostError, KtrdrError, UsageError, keep_end
from ktrdr_vm.host import process
from ktrdr_vm.host.rights import make_private
from ktrdr_vm.places.engine import NOT_LISTED, mark_started
from ktrdr_vm.places.filenames import BATCHES, LEASE, REQUESTS, STARTED
from ktrdr_vm.places.request import Request, is_node
from ktrdr_vm.places.request_state import RequestState, read_json
from ktrdr_vm.places.secret_values import Values
from ktrdr_vm.places.spool import Spool

# MiB for QEMU, the guard and the daemons besides the memory of the guest.
_OVERHEAD = 768
# CPUs besides those of the guest are not asked for: QEMU's own threads and the guard are mostly idle.
_LIMIT = 60.0
_JOB = re.compile(r"([0-9]{1,12})(?:;[^\n]*)?\n?")
_REASONS = re.compile(
    r"([0-9]{1,12})(?:_([0-9]{1,7}|\[[0-9,%-]{1,200}\]))?\|([A-Z_]{1,30})\|([^|\n]{0,200})\|([^|\n]{0,200})"
)
_MOST_TOGETHER = 1000


class SlurmEngine:
    """`program` is `ktrdr-vm` on the nodes; `cache` is a folder of each node; `options` are added to those of
    sbatch."""

    is_here = False

    def __init__(self, program: str, cache: str = "", options: Sequence[str] = (), *, together: int = 0) -> None:
        self._program = program
        self._cache = cache
        self._options = tuple(options)
        self._together = together

    def render_script(self, spool: Spool, requests: Sequence[Request]) -> str:
        """The script for sbatch: one job for one request, one array for several."""
        first, many = requests[0], len(requests) > 1
        folder = str(spool.request(first.request_id))
        array = f"{spool.root}/{BATCHES}/{first.request_id}"
        grace = max(one.grace for one in requests)
        options = [
            "--export=NONE",
            "--open-mode=append",
            "--gres=kvm:1",
            f"--cpus-per-task={max(one.vcpus for one in requests)}",
            f"--mem={max(one.memory for one in requests) + _OVERHEAD}M",
            # The time of the program's own limits, and what it needs after the signal.
            f"--time={_render_time(max(one.seconds for one in requests) + 2 * grace)}",
            f"--signal=B:USR1@{grace}",
            f"--job-name=ktrdr-{first.instance_id}",
            f"--comment={first.request_id}",
            f"--output={array if many else folder}/output.log",
            *(["--requeue"] if max(one.attempts for one in requests) > 1 else ["--no-requeue"]),
            *(self._render_array(len(requests)) if many else []),
            *([f"--nodelist={first.node}"] if first.node else []),
            *self._options,
        ]
        lines = ["#!/bin/sh", *(f"#SBATCH {option}" for option in options)]
        cache = ["--cache", self._cache] if self._cache else []
        where = f'{shlex.quote(array)}/"$SLURM_ARRAY_TASK_ID"' if many else shlex.quote(folder)
        return "\n".join([*lines, f"exec {shlex.join([self._program, 'run-request', *cache])} {where}"]) + "\n"

    def _render_array(self, count: int) -> list[str]:
        # A job that anybody submits later, and that is smaller, goes before the tasks of this one that still wait:
        # without fair shares, Slurm would let it wait for all of them.
        return [f"--array=0-{count - 1}{f'%{self._together}' if self._together else ''}", f"--nice={count}"]

    def start(self, spool: Spool, requests: Sequence[Request], values: Mapping[str, Values]) -> None:
        new = [one for one in requests if not read_json(spool.request(one.request_id) / STARTED)]
        if not new:
            return
        if len(new) > _MOST_TOGETHER:
            raise UsageError(
                f"more than {_MOST_TOGETHER} requests at once",
                where="sbatch",
                hint="submit fewer references in one call",
            )
        self._refuse_secrets(new)
        script = self.render_script(spool, new)
        if len(new) > 1:
            batch = spool.root / BATCHES / new[0].request_id
            make_private(batch.parent, batch)
            for number, one in enumerate(new):
                link = batch / str(number)
                link.unlink(missing_ok=True)
                link.symlink_to(f"../../{REQUESTS}/{one.request_id}")
        done = process.run(
            ["sbatch", "--parsable"],
            stdin=script.encode(),
            timeout=_LIMIT,
            environment=_find_environment(),
            check=False,
        )
        found = _JOB.fullmatch(done.text)
        if done.exit_code != 0 or found is None:
            raise HostError(
                f"sbatch refused the job: {keep_end(done.error_text, 500) or keep_end(done.text, 200)}",
                where="sbatch",
                hint="correct the options of the place in places.yaml; `ktrdr-vm submit --script` prints the script",
            )
        for number, one in enumerate(new):
            task = str(number) if len(new) > 1 else ""
            mark_started(spool.request(one.request_id), kind="job", job=found[1], task=task)

    def _refuse_secrets(self, requests: Sequence[Request]) -> None:
        for one in requests:
            if one.secrets:
                raise UsageError(
                    f"a job has no environment, and this request needs secrets: {', '.join(one.secrets[:5])}",
                    where=one.request_id,
                    hint="run it at a place of kind ssh, whose owner provides them",
                )

    def explain(self, spool: Spool, states: Sequence[RequestState]) -> dict[str, str]:
        """The reasons of squeue. Without an answer of the controller, its error; what runs goes on without it."""
        waiting = {
            one.request_id: read_json(spool.request(one.request_id) / STARTED)
            for one in states
            if one.state == "waiting"
        }
        jobs = {request_id: (str(job.get("job", "")), str(job.get("task", ""))) for request_id, job in waiting.items()}
        if not any(job for job, _ in jobs.values()):
            return {}
        try:
            words = ["squeue", "--noheader", "--array", "--me", "--format=%F_%K|%T|%r|%N"]
            done = process.run(words, timeout=_LIMIT, environment=_find_environment(), check=False)
        except KtrdrError as error:
            return dict.fromkeys(jobs, f"squeue does not answer: {error.message[:200]}")
        if done.exit_code != 0:
            return dict.fromkeys(jobs, f"squeue does not answer: {keep_end(done.error_text, 200)}")
        said: dict[tuple[str, str], str] = {}
        for line in done.text.splitlines():
            if found := _REASONS.fullmatch(line.strip().replace("_N/A|", "|", 1)):
                said[found[1], found[2] or ""] = (
                    f"{found[3].capitalize()}: {found[4]}" if found[4] not in ("", "None") else found[3].capitalize()
                )
        return {request_id: said.get(job) or said.get((job[0], "")) or NOT_LISTED for request_id, job in jobs.items()}

    def cancel(self, spool: Spool, state: RequestState) -> None:
        """One that waits is removed from the queue. One that runs polls for the mark; after its grace, the scheduler
        ends it."""
        folder = spool.request(state.request_id)
        job = read_json(folder / STARTED)
        name = f"{job['job']}_{job['task']}" if job.get("task") else str(job.get("job", ""))
        if state.state == "running":
            deadline = time.monotonic() + spool.read(state.request_id).grace
            while time.monotonic() < deadline:
                if spool.state(state.request_id).state != "running":
                    return
                time.sleep(0.5)
        if name and re.fullmatch(r"[0-9_]{1,24}", name):
            process.run(["scancel", name], timeout=_LIMIT, environment=_find_environment(), check=False)
        if state.state == "waiting" and spool.state(state.request_id).attempt == state.attempt:
            spool.end_early(state.request_id)

    def find_way(self, spool: Spool, request_id: str) -> tuple[str, ...]:
        """A step of the job that runs the attempt, which is on the same node and shares its resources."""
        attempt = spool.attempt(request_id, spool.count_attempts(request_id))
        job = str(read_json(attempt / LEASE).get("job", ""))
        if not re.fullmatch(r"[0-9]{1,12}", job):
            raise UsageError("the attempt names no job", where=request_id, hint="`ktrdr-vm queue` shows its state")
        terminal = ("--pty",) if os.isatty(0) and os.isatty(1) else ()
        home = ("env", f"KTRDR_VM_HOME={self._cache}/{os.geteuid()}") if self._cache else ()
        return ("srun", f"--jobid={job}", "--overlap", "--ntasks=1", "--quiet", "--chdir=/", *terminal, *home)

    def describe(self) -> dict[str, Any]:
        found = {name: str(process.find_program(name) or "") for name in ("sbatch", "squeue", "scancel", "srun")}
        return {"engine": "slurm", "missing": [name for name, path in found.items() if not path]}

    def list_nodes(self) -> list[str]:
        """The nodes with a GRES `kvm`, in the partition of the options."""
        chosen = [one for one in self._options if one.startswith("--partition=")][-1:]
        words = ["sinfo", "--noheader", "--Node", "--format=%N|%G", *chosen]
        done = process.run(words, timeout=_LIMIT, environment=_find_environment())
        rows = (line.strip().partition("|") for line in done.text.splitlines())
        return sorted({name for name, _, gres in rows if is_node(name) and re.search(r"\bkvm:", gres)})

    def find_missing(self) -> dict[str, str]:
        """An answer of the controller, and a node that counts its VMs: without one, a request waits forever."""
        try:
            done = process.run(
                ["sinfo", "--noheader", "--format=%G"], timeout=_LIMIT, environment=_find_environment(), check=False
            )
        except KtrdrError as error:
            return {"controller": error.message[:300]}
        if done.exit_code != 0:
            return {"controller": f"sinfo does not answer: {keep_end(done.error_text, 300)}"}
        if not re.search(r"\bkvm:", done.text):
            return {"gres": "no node has Gres=kvm:N, which each request asks for"}
        return {}


def _render_time(seconds: int) -> str:
    """Minutes, rounded up: sbatch's plainest form."""
    return str(-(-seconds // 60))


def _find_environment() -> dict[str, str]:
    """What the programs of Slurm read of this user's environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in ("HOME", "USER", "LOGNAME") or name.startswith("SLURM_")
    }


def make_spool(root: str) -> Spool:
    """The spool of this user in the shared folder of a cluster. HostError if the folder does not exist, or if another
    user could put their requests in its place: a job would run them as this user."""
    shared = Path(root)
    if not shared.is_dir():
        raise HostError(
            "the spool does not exist here",
            where=root,
            hint="create it on the shared file system, writable for its users, with mode 1777",
        )
    mode = shared.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise HostError(
            "other users can replace your folder in the spool", where=root, hint=f"its owner sets `chmod +t {root}`"
        )
    folder = shared / str(os.geteuid())
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise HostError(
            "your folder in the spool was made by another user",
            where=str(folder),
            hint="the owner of the spool removes it, or name another spool in places.yaml",
        )
    make_private(folder)
    return Spool(folder)
