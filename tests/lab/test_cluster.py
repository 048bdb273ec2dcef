"""Requests on a real cluster of Slurm, with a stand-in for the VM: what happens to a job, and what becomes of its
request."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from laboratory.cluster import NODES, Cluster, running_cluster
from laboratory.far import Far
from laboratory.login import find_states, list_refs, make_far, wait_for

pytestmark = [
    pytest.mark.host_root,
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))) or os.geteuid() != 0,
        reason="needs slurm-wlm, munge and root",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def far(cluster: Cluster, tmp_path: Path) -> Iterator[Far]:
    made = make_far(cluster, tmp_path)
    yield made
    cluster.call("scancel", "--user=root", "--full", check=False)
    made.stop()
    wait_for(lambda: not cluster.call("squeue", "--noheader"), 60)


def submit(far: Far, name: str = "demo") -> str:
    return far.call("submit", "--on", "cluster", "--instance-id", name).strip()


def make_branches(far: Far, count: int) -> list[str]:
    far.git("add", "ktrdr.yaml")
    far.git("commit", "--quiet", "--message", "two")
    names = [f"branch-{number}" for number in range(count)]
    for name in names:
        far.git("branch", name)
    return [word for name in names for word in ("--ref", name)]


def test_a_run_there_is_a_run_here(far: Far, cluster: Cluster) -> None:
    far.call("places", "check", "cluster")
    report = json.loads(far.call("apply", "--on", "cluster", "--instance-id", "demo", "--json"))
    assert (report["outcome"], report["exit_code"], report["instance_id"]) == ("passed", 0, "demo")
    [state] = find_states(far).values()
    assert (state["state"], state["attempt"]) == ("finished", 1) and state["node"] in NODES
    assert (cluster.place / f"local-{state['node']}/0/runs/demo" / report["run_id"]).is_dir(), (
        "state is on the disk of the node"
    )
    origin = json.loads((far.near / "runs/demo/latest/origin.json").read_text())
    assert (origin["node"], origin["attempt"]) == (state["node"], 1)
    assert len(list_refs(far)) == 1


def test_an_array_of_four_on_two_nodes_and_one_cancelled_midway(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="25")
    words = make_branches(far, 5)
    requests = far.call("submit", "--on", "cluster", *words).split()
    wait_for(lambda: sum(one["state"] == "running" for one in find_states(far).values()) == 4)
    states = find_states(far)
    assert sorted(states[one]["node"] for one in requests if states[one]["node"]) == ["n1", "n1", "n2", "n2"]
    [waits] = [one for one in requests if states[one]["state"] == "waiting"]
    assert states[waits]["why"] == "Pending: Resources"
    assert (
        len({line.split("_")[0] for line in cluster.call("squeue", "--noheader", "--array", "--format=%i").split()})
        == 1
    ), "one sbatch"
    cancelled = next(one for one in requests if one != waits)
    # The stand-in's commands go where the attempt is: a step of the same job, on its node.
    name = states[cancelled]["instance_id"]
    assert far.call("logs", name) == "a line of the console\n"
    far.call("cancel", cancelled)
    for one in requests:
        far.call("watch", one, code=130 if one == cancelled else 0)
    found = find_states(far)
    assert {found[one]["outcome"] for one in requests} == {"passed", "cancelled"}
    assert far.call("fetch", *requests, code=130)
    assert len(list_refs(far)) == 4, "nothing of the cancelled one"
    wait_for(lambda: not cluster.call("squeue", "--noheader"))


def test_every_node_is_warmed_up_once(far: Far, cluster: Cluster) -> None:
    requests = far.call("submit", "--on", "cluster", "--warm").split()
    assert len(requests) == len(NODES)
    for request in requests:
        far.call("watch", request)
    assert sorted(find_states(far)[one]["node"] for one in requests) == list(NODES)
    for node in NODES:
        assert (cluster.place / f"local-{node}/0/warm").read_text() == "debian-13-docker"
    far.call("fetch", *requests)
    assert "image and template are there" in far.said
    far.call("submit", "--on", "cluster", "--warm", "--ref", "main", code=2)


def submit_as_nobody(cluster: Cluster) -> str:
    """A job of another user for the same nodes; it ends at once."""
    return cluster.call(
        *("sbatch", "--parsable", "--uid=nobody", "--gres=kvm:1", "--mem=100M"),
        *("--output=/dev/null", "--chdir=/", "--wrap=true"),
    ).strip()


def find_start(cluster: Cluster, job: str) -> float | None:
    """When a job began, in seconds since the epoch; None before that."""
    shown = dict(
        word.partition("=")[::2] for word in cluster.call("scontrol", "--oneliner", "show", "job", job).split()
    )
    if shown["JobState"] in ("PENDING", "CONFIGURING"):
        return None
    return time.mktime(time.strptime(shown["StartTime"], "%Y-%m-%dT%H:%M:%S"))


@pytest.mark.parametrize("fair", [True, pytest.param(False, marks=pytest.mark.full)])
def test_an_array_does_not_starve_another_user(fair: bool, far: Far, cluster: Cluster) -> None:
    if not fair:
        # Without fair shares, and without the lower priority of an array, Slurm serves by time of submission.
        places = far.place / "config/ktrdr-vm/places.yaml"
        places.write_text(places.read_text().replace("--partition=vm", "--partition=vm, --nice=0"))
    far.set(FAR_SECONDS="3")
    requests = far.call("submit", "--on", "cluster", *make_branches(far, 16)).split()
    submitted = time.time()
    job = submit_as_nobody(cluster)
    wait_for(lambda: find_start(cluster, job), 240)
    began = find_start(cluster, job)
    assert began is not None
    wait_for(lambda: not cluster.call("squeue", "--noheader"), 240)
    took = time.time() - submitted
    spool = cluster.shared / "0/requests"
    leases = [json.loads((spool / one / "attempts/1/lease.jsonl").read_text().splitlines()[0]) for one in requests]
    before = sum(datetime.fromisoformat(one["time"]).timestamp() < began for one in leases)
    print(f"fair={fair}: waited {began - submitted:.0f} s of {took:.0f} s, behind {before} of {len(requests)} runs")
    assert before <= 8 if fair else before >= 14


@pytest.mark.full
@pytest.mark.skipif(not all(map(shutil.which, ("slurmdbd", "mariadbd"))), reason="needs slurmdbd and MariaDB")
def test_fair_shares_of_two_users(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "shared", shares=("root", "nobody")) as cluster:
        far = make_far(cluster, tmp_path)
        try:
            places = far.place / "config/ktrdr-vm/places.yaml"
            places.write_text(places.read_text().replace("--partition=vm", "--partition=vm, --nice=0"))
            far.set(FAR_SECONDS="8")
            requests = far.call("submit", "--on", "cluster", *make_branches(far, 48)).split()
            # Slurm counts what was used once a minute.
            time.sleep(75)
            submitted = time.time()
            job = submit_as_nobody(cluster)
            wait_for(lambda: find_start(cluster, job), 240)
            began = find_start(cluster, job)
            waiting = sum(one["state"] == "waiting" for one in find_states(far).values())
            assert began is not None
            print(f"waited {began - submitted:.0f} s, before {waiting} of {len(requests)} runs of the other user")
            print(cluster.call("sshare", "--all", "--format=User,RawShares,RawUsage,FairShare"))
            assert began - submitted < 20 and waiting > 5
        finally:
            cluster.call("scancel", "--user=root", check=False)
            far.stop()


def test_a_step_of_a_command_ends_with_its_client(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="40")
    submit(far, "step")
    wait_for(lambda: [one["state"] for one in find_states(far).values()] == ["running"])
    started = far.start("logs", "--follow", "step")
    assert started.stdout is not None and started.stdout.readline() == "a line of the console\n"

    def steps() -> list[str]:
        shown = cluster.call("squeue", "--steps", "--noheader", "--format=%i")
        return [one for one in shown.split() if one[-1].isdigit()]

    assert len(steps()) == 1
    started.terminate()
    started.communicate(timeout=30)
    wait_for(lambda: not steps(), 30)
    far.call("report", "step", code=2)
    assert "the request is running" in far.said


def test_the_signal_of_the_time_limit_reaches_the_program(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="120")
    places = far.place / "config/ktrdr-vm/places.yaml"
    places.write_text(places.read_text().replace("--partition=vm", "--partition=vm, --time=1, --signal=B:USR1@50"))
    began = time.monotonic()
    report = json.loads(far.call("apply", "--on", "cluster", "--instance-id", "limit", "--json", code=130))
    assert report["outcome"] == "interrupted" and time.monotonic() - began < 60
    assert len(list_refs(far)) == 1, "what the workload had is brought back"


def test_scancel_alone_ends_a_run_with_its_evidence(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="60")
    request = submit(far, "scancel")
    wait_for(lambda: (cluster.shared / "0/requests" / request / "attempts/1/events.jsonl").exists())
    time.sleep(1)
    [job] = cluster.call("squeue", "--noheader", "--format=%i").split()
    cluster.call("scancel", job)
    far.call("watch", request, code=130)
    assert json.loads(far.call("fetch", request, "--json", code=130))["outcome"] == "interrupted"
    assert find_states(far)[request]["attempt"] == 1, "it is not tried again"


def test_one_that_waits_is_cancelled_and_never_begins(far: Far, cluster: Cluster) -> None:
    cluster.call("scontrol", "update", "PartitionName=vm", "State=DOWN")
    try:
        request = submit(far)
        wait_for(lambda: "Pending" in find_states(far)[request]["why"])
        far.call("cancel", request)
        assert find_states(far)[request]["state"] == "cancelled"
        assert cluster.call("squeue", "--noheader") == ""
    finally:
        cluster.call("scontrol", "update", "PartitionName=vm", "State=UP")
    far.call("watch", request, code=130)
    assert not (cluster.shared / "0/requests" / request / "attempts").exists()


def test_a_node_that_dies_loses_nothing_that_was_reported(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="8")
    request = submit(far)
    attempts = cluster.shared / "0/requests" / request / "attempts"
    wait_for(lambda: (attempts / "1/events.jsonl").exists())
    time.sleep(1)
    node = find_states(far)[request]["node"]
    cluster.kill_node(node)
    reported = (attempts / "1/events.jsonl").read_bytes()
    try:
        far.call("watch", request)
        state = find_states(far)[request]
        assert (state["attempt"], state["outcome"]) == (2, "passed") and state["node"] != node
        assert (attempts / "1/events.jsonl").read_bytes() == reported and not (attempts / "1/outcome.json").exists()
        far.call("fetch", request)
        assert len(list_refs(far)) == 1
    finally:
        cluster.start_node(node)
    wait_for(lambda: set(cluster.states().values()) == {"idle"}, 90)


@pytest.mark.full
def test_a_node_that_is_cut_off_stops_its_attempt(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="25")
    request = submit(far, "cut")
    attempts = cluster.shared / "0/requests" / request / "attempts"
    wait_for(lambda: (attempts / "1/events.jsonl").exists())
    node = find_states(far)[request]["node"]
    runs = cluster.place / f"local-{node}/0/runs/cut"
    cluster.cut(node)
    try:
        wait_for(lambda: (attempts / "2").exists(), 120)
        # The lease of the old copy ended before: its run was interrupted on the node, and has its evidence there.
        [run] = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
        assert json.loads((run / "report.json").read_text())["outcome"] == "interrupted"
        far.call("watch", request)
    finally:
        cluster.heal(node)
    state = find_states(far)[request]
    assert (state["attempt"], state["outcome"]) == (2, "passed") and state["node"] != node
    assert not (attempts / "1/outcome.json").exists() and not (attempts / "1/commits.bundle").exists()
    report = json.loads(far.call("fetch", request, "--json"))
    assert [one["commit"] for one in report["commits"]] == [far.git("rev-parse", ref) for ref in list_refs(far)]
    wait_for(lambda: set(cluster.states().values()) == {"idle"}, 120)


@pytest.mark.full
def test_a_node_that_only_the_controller_has_lost_runs_on(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="75")
    request = submit(far, "apart")
    attempts = cluster.shared / "0/requests" / request / "attempts"
    wait_for(lambda: (attempts / "1/events.jsonl").exists())
    node = find_states(far)[request]["node"]
    [other] = set(NODES) - {node}
    cluster.disconnect(node)
    try:
        wait_for(lambda: cluster.call("squeue", "--noheader", "--format=%T %N").split() == ["RUNNING", other], 120)
        far.call("watch", request)
        assert [find_states(far)[request][key] for key in ("attempt", "outcome", "node")] == [1, "passed", node]
        far.call("fetch", request)
        assert len(list_refs(far)) == 1
        wait_for(lambda: not cluster.call("squeue", "--noheader"), 30)
        assert not (attempts / "2").exists()
    finally:
        cluster.connect(node)
    wait_for(lambda: set(cluster.states().values()) == {"idle"}, 120)


def test_a_place_without_nodes_for_it(far: Far, cluster: Cluster) -> None:
    places = far.place / "config/ktrdr-vm/places.yaml"
    text = places.read_text()
    # More than any node has: Slurm refuses such a job at once.
    places.write_text(text.replace("--partition=vm", "--partition=vm, --gres=kvm:9"))
    far.call("submit", "--on", "cluster", "--instance-id", "never", code=3)
    assert "sbatch refused the job" in far.said and "next:" in far.said
    # The nodes that have it are not there now.
    places.write_text(text)
    cluster.call("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        request = submit(far, "later")
        wait_for(lambda: "Pending: " in find_states(far)[request]["why"])
        why = find_states(far)[request]["why"]
        assert "Resources" in why or "DOWN" in why or "nodes" in why.lower(), why
        assert not (cluster.shared / "0/requests" / request / "attempts").exists()
    finally:
        cluster.call("scontrol", "update", "NodeName=n1,n2", "State=RESUME")
    far.call("watch", request)


def test_a_job_that_somebody_else_removed_does_not_wait_forever(far: Far, cluster: Cluster) -> None:
    cluster.call("scontrol", "update", "PartitionName=vm", "State=DOWN")
    try:
        request = submit(far, "removed")
        wait_for(lambda: "Pending" in find_states(far)[request]["why"])
        cluster.call("scancel", "--user=root")
    finally:
        cluster.call("scontrol", "update", "PartitionName=vm", "State=UP")
    wait_for(lambda: find_states(far)[request]["why"] == "squeue does not list it")
    # As after two minutes, by which a shared file system shows what a job has written.
    os.utime(cluster.shared / "0/requests" / request / "started.json", (1, 1))
    far.call("watch", request, code=4)
    assert "its job has ended" in far.said


@pytest.mark.full
def test_a_spool_that_is_gone_stops_the_run_with_its_evidence_on_the_node(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="60")
    request = submit(far, "gone")
    attempt = cluster.shared / "0/requests" / request / "attempts/1"
    wait_for(lambda: (attempt / "events.jsonl").exists())
    node = find_states(far)[request]["node"]
    cluster.hide_spool(node)
    try:
        wait_for(lambda: not cluster.call("squeue", "--noheader"), 120)
    finally:
        cluster.show_spool(node)
    [run] = [
        path
        for path in (cluster.place / f"local-{node}/0/runs/gone").iterdir()
        if path.is_dir() and not path.is_symlink()
    ]
    assert json.loads((run / "report.json").read_text())["outcome"] == "interrupted"
    assert not (attempt / "outcome.json").exists()
    for path in (attempt, attempt / "lease.jsonl", attempt.parents[1] / "started.json"):
        os.utime(path, (1, 1))
    far.call("watch", request, code=4)
    assert "attempt 1 was lost" in far.said


def test_the_controller_is_away_and_runs_go_on(far: Far, cluster: Cluster) -> None:
    far.set(FAR_SECONDS="6")
    request = submit(far)
    wait_for(lambda: find_states(far)[request]["state"] == "running")
    cluster.stop_controller()
    try:
        far.call("watch", request)
        assert find_states(far)[request]["outcome"] == "passed"
        far.call("submit", "--on", "cluster", "--instance-id", "other", code=3)
        assert "sbatch" in far.said and "next:" in far.said
    finally:
        cluster.start_controller()
    wait_for(lambda: not cluster.call("squeue", "--noheader"), 90)


# A run in a shell, as the smallest that a client accepts: what is measured is ours and Slurm's, not Python's start.
STAND_IN = """\
#!/bin/sh
for folder; do :; done
folder=$(readlink -f "$folder") attempt=$folder/attempts/1 run_id=20260101T000000Z-0123
mkdir -p "$attempt/run"
echo "{\\"node\\": \\"$(uname -n)\\", \\"pid\\": 1}" > "$attempt/lease.jsonl"
echo '{"event": "run_started", "instance_id": "x"}' > "$attempt/events.jsonl"
name=$(sed -n 's/^ "instance_id": "\\(.*\\)",$/\\1/p' "$folder/request.json")
sed "s/INSTANCE/$name/" TEMPLATE > "$attempt/run/report.json"
echo '{"outcome": "passed", "exit_code": 0, "run_id": "20260101T000000Z-0123"}' > "$attempt/outcome.json"
"""


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.full)])
def test_many_requests_are_one_array(count: int, tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", slots=4, cpus=8) as cluster:
        far = Far(tmp_path)
        try:
            enter = " ".join(cluster.inside())
            far.more = f'export SLURM_CONF={cluster.environment["SLURM_CONF"]}\ncase $(uname -n) in n1|n2) ENTER=;; *) ENTER="{enter}";; esac'
            far.set(FAR_SECONDS="0")
            program = tmp_path / "ktrdr-vm"
            (tmp_path / "config/ktrdr-vm/places.yaml").write_text(
                f"places:\n  cluster: {{kind: slurm, host: far, ssh_config: {tmp_path}/ssh/client, program: {program},"
                f" spool: {cluster.shared}, cache: {cluster.local}, options: [--partition=vm, --export=ALL, --mem=100M, --cpus-per-task=1]}}\n"
            )
            far.git("add", "ktrdr.yaml")
            far.git("commit", "--quiet", "--message", "two")
            report = json.loads(far.call("apply", "--on", "cluster", "--instance-id", "first", "--json"))
            report |= {"instance_id": "INSTANCE", "run_id": "20260101T000000Z-0123", "commits": []}
            (tmp_path / "template").write_text(json.dumps(report))
            (tmp_path / "stand-in").write_text(STAND_IN.replace("TEMPLATE", str(tmp_path / "template")))
            (tmp_path / "stand-in").chmod(0o755)
            real = program.read_text().removeprefix("#!/bin/sh\n")
            program.write_text(f'#!/bin/sh\n[ "$1" != run-request ] || exec {tmp_path}/stand-in "$@"\n{real}')
            names = [f"many-{number:04d}" for number in range(count)]
            subprocess.run(
                ["git", "-C", str(far.repository), "update-ref", "--stdin"],
                input="".join(f"create refs/heads/{name} {report['base_commit']}\n" for name in names),
                text=True,
                check=True,
            )
            took: dict[str, float] = {}

            def measure(what: str, *words: str, code: int = 0) -> str:
                began = time.monotonic()
                said = far.call(*words, code=code, limit=1200)
                took[what] = time.monotonic() - began
                return said

            requests = measure(
                "submit", "submit", "--on", "cluster", *(word for name in names for word in ("--ref", name))
            ).split()
            assert len(set(requests)) == count
            began = time.monotonic()
            wait_for(lambda: not cluster.call("squeue", "--noheader"), 900)
            took["slurm"] = time.monotonic() - began
            states = json.loads(measure("queue", "queue", "--json"))
            assert sum(one["outcome"] == "passed" for one in states) == count + 1
            assert len({one["node"] for one in states}) == 2
            measure("watch", "watch", requests[-1])
            measure("fetch", "fetch", *requests)
            assert len(list((far.near / "runs").glob("*/latest/report.json"))) == count + 1
            for what, seconds in took.items():
                print(f"{what:<7} {seconds:7.1f} s  {seconds * 1000 / count:5.1f} ms a request")
            # No loop of ours waits on each of them.
            assert took["queue"] < 20 and took["watch"] < 20 and took["submit"] < 600 and took["fetch"] < 600
        finally:
            far.stop()
