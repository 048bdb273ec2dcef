"""The state of a request is read from its files, the lease ends an attempt, and Slurm's programs are asked as its
manual says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.errors import HostError, UsageError
from ktrdr_vm.host.process import Completed
from ktrdr_vm.places import slurm
from ktrdr_vm.places.engine import DetachedEngine, mark_started
from ktrdr_vm.places.filenames import CANCEL, LEASE
from ktrdr_vm.places.lease import Lease
from ktrdr_vm.places.request import Request
from ktrdr_vm.places.request_state import find_pid_namespace, write_outcome
from ktrdr_vm.places.slurm import SlurmEngine, _find_environment, make_spool
from ktrdr_vm.places.spool import Spool

Make = Callable[..., Request]
Write = Callable[[Request], Path]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def receive(spool: Spool, make_request: Make, write_request: Write) -> Callable[..., Request]:
    def receive(**changes: Any) -> Request:
        request = make_request(**changes)
        return spool.receive_folder(write_request(request), request.request_id)

    return receive


def begin_attempt(spool: Spool, request: Request, number: int, *, pid: int, age: float = 0, node: str = "") -> Path:
    attempt = spool.attempt(request.request_id, number)
    attempt.mkdir(parents=True)
    said = {"node": node or os.uname().nodename, "pid": pid, "pid_namespace": find_pid_namespace()}
    (attempt / LEASE).write_text(json.dumps(said) + "\n")
    os.utime(attempt / LEASE, (time.time() - age, time.time() - age))
    return attempt


def test_states(spool: Spool, receive: Callable[..., Request]) -> None:
    request = receive(attempts=2)

    def state() -> tuple[str, int]:
        found = spool.state(request.request_id)
        return found.state, found.attempt

    mark_started(spool.request(request.request_id), kind="job", job="7")
    assert state() == ("waiting", 0)
    attempt = begin_attempt(spool, request, 1, pid=os.getpid())
    assert state() == ("running", 1)
    os.utime(attempt / LEASE, (1, 1))
    assert state() == ("waiting", 1), "its lease ended, and the scheduler starts another"
    second = begin_attempt(spool, request, 2, pid=1, age=1000, node="elsewhere")
    assert state() == ("lost", 2)
    write_outcome(second, {"outcome": "passed", "exit_code": 0, "run_id": ""})
    assert state() == ("finished", 2)


def test_a_process_that_is_gone_is_lost_at_once(spool: Spool, receive: Callable[..., Request]) -> None:
    request = receive()
    # No process has this number: it is above the limit of the kernel.
    begin_attempt(spool, request, 1, pid=2**22 + 1)
    assert spool.state(request.request_id).state == "lost"


def test_a_host_error_is_tried_again_and_a_failed_gate_is_not(spool: Spool, receive: Callable[..., Request]) -> None:
    request = receive(attempts=2)
    attempt = begin_attempt(spool, request, 1, pid=os.getpid())
    write_outcome(attempt, {"outcome": "error", "exit_code": 3, "run_id": ""})
    assert spool.state(request.request_id).state == "waiting"
    write_outcome(attempt, {"outcome": "failed", "exit_code": 1, "run_id": ""})
    assert spool.state(request.request_id).state == "finished"


def test_what_arrived_differently_is_refused(spool: Spool, make_request: Make, write_request: Write) -> None:
    request = make_request()
    folder = write_request(request)
    (folder / "files/ktrdr.yaml").write_text("x" * 43)
    with pytest.raises(UsageError, match="did not arrive"):
        spool.receive_folder(folder, request.request_id)
    assert spool.list_ids() == []


class Stopped:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)

    def wait(self) -> list[str]:
        deadline = time.monotonic() + 10
        while not self.reasons and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.reasons


def make_attempt(tmp_path: Path) -> Path:
    attempt = tmp_path / "attempts" / "1"
    attempt.mkdir(parents=True)
    return attempt


def test_a_lease_appends_and_ends(tmp_path: Path) -> None:
    attempt, stopped = make_attempt(tmp_path), Stopped()
    with Lease(tmp_path, attempt, 0.4, stopped, poll=0.02):
        time.sleep(0.6)
    assert stopped.reasons == []
    assert len((attempt / LEASE).read_text().splitlines()) > 3


def test_a_lease_that_cannot_append_stops_its_attempt(tmp_path: Path) -> None:
    attempt, stopped = make_attempt(tmp_path), Stopped()
    with Lease(tmp_path, attempt, 0.3, stopped, poll=0.02):
        (attempt / LEASE).unlink()
        (attempt / LEASE).symlink_to("/dev/full")
        assert "could not append" in stopped.wait()[0]
    assert len(stopped.reasons) == 1


@pytest.mark.parametrize(("name", "said"), [(CANCEL, "cancelled"), ("attempts/2", "newer attempt")])
def test_a_mark_and_a_newer_attempt_stop_it(name: str, said: str, tmp_path: Path) -> None:
    attempt, stopped = make_attempt(tmp_path), Stopped()
    with Lease(tmp_path, attempt, 60, stopped, poll=0.02):
        (tmp_path / name).mkdir()
        assert said in stopped.wait()[0]


# -- Slurm -------------------------------------------------------------------------------------------------------------


class Programs:
    """Stand-ins for sbatch, squeue and scancel."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], bytes]] = []
        self.answers: dict[str, tuple[int, str, str]] = {
            "sbatch": (0, "42\n", ""),
            "squeue": (0, "", ""),
            "scancel": (0, "", ""),
        }

    def run(self, words: list[str], *, stdin: bytes = b"", **_: object) -> Completed:
        self.calls.append((words, stdin))
        code, out, err = self.answers[words[0]]
        return Completed(tuple(words), code, out.encode(), err.encode())


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    monkeypatch.setattr(slurm.process, "run", made.run)
    return made


def test_the_script_of_one_request(spool: Spool, receive: Callable[..., Request]) -> None:
    request = receive(vcpus=2, memory=2048, seconds=3600, grace=60)
    script = SlurmEngine("ktrdr-vm", "/var/tmp/ktrdr", ["--partition=vm"]).render_script(spool, [request])
    folder = spool.request(request.request_id)
    lines = script.splitlines()
    assert lines[0] == "#!/bin/sh"
    assert lines[-1] == f"exec ktrdr-vm run-request --cache /var/tmp/ktrdr {folder}"
    assert {line.removeprefix("#SBATCH ") for line in lines[1:-1]} >= {
        "--export=NONE", "--open-mode=append", "--gres=kvm:1", "--cpus-per-task=2", "--mem=2816M", "--time=62", "--signal=B:USR1@60",
        f"--comment={request.request_id}", "--no-requeue", "--partition=vm",
    }  # fmt: skip


def test_several_requests_are_one_array(spool: Spool, receive: Callable[..., Request], programs: Programs) -> None:
    requests = [receive(attempts=2), receive(attempts=2), receive(attempts=2)]
    engine = SlurmEngine("ktrdr-vm")
    engine.start(spool, requests, {})
    engine.start(spool, requests, {})
    [(words, script)] = programs.calls
    assert words == ["sbatch", "--parsable"]
    assert b"#SBATCH --array=0-2\n" in script and b"#SBATCH --requeue\n" in script
    assert b"#SBATCH --nice=3\n" in script, "what others submit later goes before the tasks that wait"
    limited = SlurmEngine("ktrdr-vm", options=["--nice=0"], together=2).render_script(spool, requests).splitlines()
    assert "#SBATCH --array=0-2%2" in limited and limited.index("#SBATCH --nice=0") > limited.index("#SBATCH --nice=3")
    assert "--nice" not in engine.render_script(spool, requests[:1])
    assert script.rstrip().endswith(b'/"$SLURM_ARRAY_TASK_ID"')
    batch = spool.root / "batches" / requests[0].request_id
    assert [(batch / str(number)).resolve() for number in range(3)] == [
        spool.request(one.request_id) for one in requests
    ]
    programs.answers["squeue"] = (0, "42_0|PENDING|Resources|\n42_1|PENDING|Priority|\nx|y\n7|PENDING|Other|\n", "")
    found = engine.explain(spool, [spool.state(one.request_id) for one in requests])
    assert [found[one.request_id] for one in requests] == [
        "Pending: Resources",
        "Pending: Priority",
        "squeue does not list it",
    ]
    programs.answers["squeue"] = (1, "", "Unable to contact slurm controller")
    silent = engine.explain(spool, [spool.state(one.request_id) for one in requests])
    assert set(silent.values()) == {"squeue does not answer: Unable to contact slurm controller"}


def test_each_node_is_warmed_up(spool: Spool, receive: Callable[..., Request], programs: Programs) -> None:
    engine = SlurmEngine("ktrdr-vm", options=["--partition=vm"])
    programs.answers["sinfo"] = (0, "n1|gpu:1,kvm:4\nn2|(null)\nn3|kvm:2(S:0)\n-x|kvm:1\nn1|kvm:4\n", "")
    assert engine.list_nodes() == ["n1", "n3"]
    assert programs.calls[-1][0][-1] == "--partition=vm"
    request = receive(warm=True, node="n3")
    assert "#SBATCH --nodelist=n3" in engine.render_script(spool, [request]).splitlines()
    assert "--nodelist" not in engine.render_script(spool, [receive()])


def test_an_attempt_that_has_just_begun_ends_itself(spool: Spool, receive: Callable[..., Request]) -> None:
    """Recorded as cancelled while it waited, it would have no evidence."""
    request, engine = receive(), DetachedEngine(["ktrdr-vm"])
    mark_started(spool.request(request.request_id), kind="process")
    before = spool.state(request.request_id)
    assert before.state == "waiting"
    begin_attempt(spool, request, 1, pid=os.getpid())
    engine.cancel(spool, before)
    assert spool.state(request.request_id).state == "running"


def test_a_waiting_job_is_cancelled(spool: Spool, receive: Callable[..., Request], programs: Programs) -> None:
    request, engine = receive(), SlurmEngine("ktrdr-vm")
    engine.start(spool, [request], {})
    spool.mark_cancelled(request.request_id)
    engine.cancel(spool, spool.state(request.request_id))
    assert programs.calls[-1][0] == ["scancel", "42"]
    assert spool.state(request.request_id).state == "cancelled"


def test_a_running_job_gets_its_grace(spool: Spool, receive: Callable[..., Request], programs: Programs) -> None:
    request, engine = receive(grace=1), SlurmEngine("ktrdr-vm")
    engine.start(spool, [request], {})
    attempt = begin_attempt(spool, request, 1, pid=os.getpid())
    os.utime(attempt / LEASE, (time.time() + 60, time.time() + 60))
    began = time.monotonic()
    engine.cancel(spool, spool.state(request.request_id))
    assert time.monotonic() - began > 0.9 and programs.calls[-1][0] == ["scancel", "42"]
    programs.calls.clear()
    write_outcome(attempt, {"outcome": "cancelled", "exit_code": 130, "run_id": ""})
    engine.cancel(spool, spool.state(request.request_id))


def test_a_refusal_of_sbatch_is_shown(spool: Spool, receive: Callable[..., Request], programs: Programs) -> None:
    programs.answers["sbatch"] = (1, "", "sbatch: error: invalid partition specified: vm")
    with pytest.raises(HostError, match="invalid partition"):
        SlurmEngine("ktrdr-vm").start(spool, [receive()], {})
    with pytest.raises(UsageError, match="needs secrets: key"):
        SlurmEngine("ktrdr-vm").start(spool, [receive(secrets=("key",))], {})
    programs.answers["squeue"] = (1, "", "slurm_load_jobs error: Unable to contact slurm controller")
    request = receive()
    mark_started(spool.request(request.request_id), kind="job", job="7", task="")
    found = SlurmEngine("ktrdr-vm").explain(spool, [spool.state(request.request_id)])
    assert "Unable to contact" in found[request.request_id]


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        ((0, "(null)\nkvm:4\n", ""), ""),
        ((0, "(null)\n", ""), "gres"),
        ((0, "", ""), "gres"),
        ((1, "", "no controller"), "controller"),
    ],
)
def test_a_cluster_without_the_resource_is_said(answer: tuple[int, str, str], missing: str, programs: Programs) -> None:
    programs.answers["sinfo"] = answer
    assert "".join(SlurmEngine("ktrdr-vm").find_missing()) == missing


def test_the_spool_of_a_cluster_is_one_a_user(tmp_path: Path) -> None:
    assert make_spool(str(tmp_path)).root == tmp_path / str(os.geteuid())
    assert (tmp_path / str(os.geteuid())).stat().st_mode & 0o777 == 0o700
    with pytest.raises(HostError, match="does not exist"):
        make_spool(str(tmp_path / "nothing"))


def test_a_folder_that_another_user_can_replace_is_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job would run, as this user, the request that is in its place by then."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (shared, own):
        folder.mkdir()
    shared.chmod(0o777)
    with pytest.raises(HostError, match="other users can replace") as refused:
        make_spool(str(shared))
    assert "chmod +t" in refused.value.hint and list(shared.iterdir()) == []
    shared.chmod(0o1777)
    mine = shared / str(os.geteuid())
    for target in (own, tmp_path / "nowhere"):
        mine.symlink_to(target)
        with pytest.raises(HostError, match="made by another user"):
            make_spool(str(shared))
        mine.unlink()
    assert make_spool(str(shared)).root == mine
    # As the next user, who finds a folder that this one has made.
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (shared / "12345").mkdir()
    with pytest.raises(HostError, match="made by another user"):
        make_spool(str(shared))


def test_the_programs_of_slurm_get_nothing_else_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USER", "LOGNAME", "SLURM_CONF", "SBATCH_EXPORT", "LD_PRELOAD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    assert {"HOME", "USER", "LOGNAME", "SLURM_CONF"} <= _find_environment().keys()
    assert all(name in ("HOME", "USER", "LOGNAME") or name.startswith("SLURM_") for name in _find_environment())
