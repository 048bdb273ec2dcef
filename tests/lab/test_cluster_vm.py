"""Real runs on a real cluster of Slurm: both nodes are hosts of VMs. What test_cluster.py shows of requests, with a VM
that is to be removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import namespaces
from laboratory.cluster import NODES, Cluster, list_host, running_cluster
from laboratory.far import FAR, Far
from laboratory.lab import Lab
from laboratory.login import find_states, list_refs, make_far, wait_for

from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import Home
from ktrdr_vm.images.store import Image
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.templates.base import build_template

pytestmark = [
    pytest.mark.host_root,
    pytest.mark.usefixtures("image"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))) or os.geteuid() != 0,
        reason="needs slurm-wlm, munge and root",
    ),
]

# The commit of a workload is told from that of every other attempt by its content.
PROFILE = """\
version: 1
name: there
image: debian-13-docker
resources: {vcpus: 1, memory: 512MiB, disk: 4GiB}
workspace: {source: ., target: /workspace}
workload:
  command: [sh, -c, "cat README /proc/sys/kernel/random/uuid > work && git add work && git -c user.name=a -c user.email=a@x commit -qm work"]
  timeout: 5m
verify: same
gates: [startability, unit]
artifacts: [/workspace/work]
"""
STARTS = """\
- hosts: all
  tasks:
    - name: the workspace is there
      ansible.builtin.command: {cmd: test -e /workspace/README}
"""
UNIT = """\
- hosts: all
  tasks:
    - name: the work is there
      ansible.builtin.command: {cmd: test -s /workspace/work}
    - name: a while
      ansible.builtin.pause: {seconds: SECONDS}
"""
# Of a run and its teardown on two busy processors.
LIMIT = 600


@pytest.fixture(scope="module")
def cluster(lab: Lab, image: Image, libvirt: Libvirt) -> Iterator[Cluster]:
    # Beneath the home of the lab: the users of VMs may enter it, and not the temporary folders of pytest.
    place = lab.scratch / "cluster"
    place.mkdir()
    with running_cluster(place, kill_wait=60, images=lab.home.images) as running:
        give_template(running, image, libvirt)
        yield running
    shutil.rmtree(place)


def give_template(cluster: Cluster, image: Image, libvirt: Libvirt) -> None:
    """The template of PROFILE for both nodes, booted once: their caches have the same name, and so has the template."""
    home = Home(cluster.local / "0")
    home.create()
    profile = cluster.place / "shape.yaml"
    profile.write_text(PROFILE[: PROFILE.index("workspace:")])
    namespaces.mount(str(image.directory.parent), home.images, flags=namespaces.MS_BIND)
    try:
        plan = gather(profile, home=home, workspace=cluster.place, instance_id="shape").plan
        template = build_template(home, plan, image, libvirt, progress=print)
    finally:
        subprocess.run(["umount", home.images], check=True, timeout=20)
    for node in NODES:
        there = Home(cluster.place / f"local-{node}/0")
        there.create()
        words = ("cp", "--archive", "--sparse=always", template.directory, str(there.templates))
        subprocess.run(words, check=True, timeout=120)
    shutil.rmtree(home.root)


@pytest.fixture
def far(cluster: Cluster, tmp_path: Path) -> Iterator[Far]:
    made = make_far(cluster, tmp_path)
    (tmp_path / "ktrdr-vm").write_text(f'#!/bin/sh\n. {made.settings}\nexec $ENTER {sys.executable} -m ktrdr_vm "$@"\n')
    made.client = (str(FAR.with_name("mac_client.py")),)
    yield made
    cluster.call("scancel", "--user=root", "--full", check=False)
    made.stop()
    wait_for(lambda: not cluster.call("squeue", "--noheader"), 120)


@pytest.fixture
def hosts(cluster: Cluster) -> dict[str, dict[str, list[str]]]:
    """What was on the nodes before the test."""
    return {node: list_host(cluster, node) for node in NODES}


def make_project(far: Far, *, seconds: int) -> None:
    """A project whose second gate takes a while, after the commits of the workload were fetched."""
    root = far.repository
    (root / "playbooks/startability.yaml").write_text(STARTS)
    (root / "playbooks/unit.yaml").write_text(UNIT.replace("SECONDS", str(seconds)))
    (root / "ktrdr.yaml").write_text(PROFILE)
    far.git("add", "-A")
    far.git("commit", "--quiet", "--message", "two")


def wait_for_task(far: Far, request: str, task: str) -> None:
    """Follow a request until a task has ended."""
    watched = far.start("watch", request, "--json")
    assert watched.stdout is not None
    try:
        for line in watched.stdout:
            if json.loads(line).get("task") == task:
                return
        raise AssertionError("the request ended before")
    finally:
        watched.kill()
        watched.communicate()


def assert_as_before(cluster: Cluster, hosts: dict[str, dict[str, list[str]]], seconds: float = 30) -> None:
    """Nothing is on the nodes that was not there before."""
    end = time.monotonic() + seconds
    # The last step of a job ends after its request.
    while (changed := find_changes(cluster, hosts)) and time.monotonic() < end:
        time.sleep(1)
    assert changed == []


def find_changes(cluster: Cluster, hosts: dict[str, dict[str, list[str]]]) -> list[str]:
    changes = []
    for node, before in hosts.items():
        for what, found in list_host(cluster, node).items():
            changes += [f"{node}: {what}: + {one}" for one in (Counter(found) - Counter(before[what])).elements()]
            changes += [f"{node}: {what}: - {one}" for one in (Counter(before[what]) - Counter(found)).elements()]
    return changes


def read_run(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


def test_an_array_of_four_on_two_nodes(far: Far, cluster: Cluster, hosts: dict[str, dict[str, list[str]]]) -> None:
    make_project(far, seconds=1)
    names = [f"branch-{number}" for number in range(4)]
    for name in names:
        far.git("checkout", "--quiet", "-b", name, "main")
        (far.repository / "README").write_text(f"of {name}\n")
        far.git("commit", "--quiet", "--all", "--message", name)
    far.git("checkout", "--quiet", "main")
    words = [word for name in names for word in ("--ref", name)]
    requests = far.call("submit", "--on", "cluster", *words).split()
    assert len({line.split("_")[0] for line in cluster.call("squeue", "--noheader", "--format=%i").split()}) == 1
    for one in requests:
        far.call("watch", one, limit=LIMIT)
    states = find_states(far)
    assert sorted(states[one]["node"] for one in requests) == ["n1", "n1", "n2", "n2"]
    far.call("fetch", *requests)
    commits = set()
    for name, one in zip(names, requests, strict=True):
        instance = states[one]["instance_id"]
        run = far.near / "runs" / instance / "latest"
        report, origin = read_run(run), json.loads((run / "origin.json").read_text())
        assert (report["instance_id"], report["run_id"]) == (instance, states[one]["run_id"])
        assert (report["outcome"], report["exit_code"], report["residue"]) == ("passed", 0, [])
        assert [(gate["name"], gate["outcome"]) for gate in report["gates"]] == [
            ("startability", "passed"),
            ("unit", "passed"),
        ]
        assert (report["base_ref"], report["base_commit"]) == (name, far.git("rev-parse", name))
        assert (origin["request_id"], origin["node"], origin["attempt"]) == (one, states[one]["node"], 1)
        # The evidence and the commits are of this branch, and those that were made in its VM.
        work = (run / "artifacts/workspace/work").read_text()
        assert work.startswith(f"of {name}\n")
        [commit] = report["commits"]
        assert far.git("rev-parse", commit["ref"]) == commit["commit"]
        assert far.git("show", f"{commit['commit']}:work") + "\n" == work
        commits.add(commit["commit"])
        for line in (run / "events.jsonl").read_text().splitlines():
            assert json.loads(line)["instance_id"] == instance
        # It was on this node and on no other one.
        assert [node for node in NODES if (cluster.place / f"local-{node}/0/runs/{instance}").exists()] == [
            states[one]["node"]
        ]
    assert len(commits) == len(list_refs(far)) == 4
    assert_as_before(cluster, hosts)


def test_a_cancel_in_the_middle_of_a_gate(far: Far, cluster: Cluster, hosts: dict[str, dict[str, list[str]]]) -> None:
    make_project(far, seconds=300)
    [request] = far.call("submit", "--on", "cluster", "--instance-id", "cancelled").split()
    wait_for_task(far, request, "the work is there")
    node = find_states(far)[request]["node"]
    assert list_host(cluster, node)["domains"] == ["ktrdr-cancelled"]
    far.call("cancel", request)
    far.call("watch", request, code=130, limit=LIMIT)
    assert find_states(far)[request]["outcome"] == "cancelled"
    report = json.loads(far.call("fetch", request, "--json", code=130))
    assert (report["outcome"], report["exit_code"], report["residue"]) == ("interrupted", 130, [])
    gates = {gate["name"]: gate["outcome"] for gate in report["gates"]}
    assert gates["startability"] == "passed" and gates.get("unit") != "passed"
    run = far.near / "runs/cancelled/latest"
    assert "the work is there" in (run / "events.jsonl").read_text() and (run / "junit.xml").exists()
    assert_as_before(cluster, hosts)


@pytest.mark.full
@pytest.mark.parametrize("during", ["gate", "template"])
def test_a_job_that_is_killed_leaves_nothing_after_the_epilog(
    during: str, far: Far, cluster: Cluster, hosts: dict[str, dict[str, list[str]]]
) -> None:
    """The system's libvirtd is not of the job: QEMU lives on, and what the job had unpacked stays."""
    make_project(far, seconds=300)
    if during == "template":
        # Of a shape that the nodes have no template of.
        (far.repository / "ktrdr.yaml").write_text(PROFILE.replace("512MiB", "640MiB"))
    cache = cluster.local / "0"
    log = cluster.place / f"epilog-{during}.log"
    words = f"PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root KTRDR_VM_HOME={cache} {sys.executable} -m ktrdr_vm"
    cluster.set_epilog(
        # What is left before shows that the epilog removes it, and not the end of the job.
        f"exec >> {log} 2>&1; virsh --connect=qemu:///system list --all --name; ls {cache}/workspaces\n"
        f"exec env -i {words} gc --owner slurm:$SLURM_JOB_ID"
    )
    try:
        [request] = far.call("submit", "--on", "cluster", "--instance-id", "killed").split()
        if during == "gate":
            wait_for_task(far, request, "the work is there")
        else:
            wait_for(lambda: any(list_host(cluster, node)["domains"] for node in NODES), 120)
        lease = cluster.shared / "0/requests" / request / "attempts/1/lease.jsonl"
        node, pid = (json.loads(lease.read_text().splitlines()[0])[key] for key in ("node", "pid"))
        [domain] = list_host(cluster, node)["domains"]
        cluster.on(node, "kill", "-KILL", str(pid))
        wait_for(lambda: not cluster.call("squeue", "--noheader"), 60)
        wait_for(lambda: set(cluster.states().values()) == {"idle"}, 90)
        assert_as_before(cluster, hosts)
    finally:
        cluster.set_epilog("true")
    lines = log.read_text().split("\n")
    assert lines[:3] == [domain, "", request] and domain.startswith(
        f"ktrdr-{'killed' if during == 'gate' else 'template--'}"
    )
    removed = [line.split()[:2] for line in lines[3:] if line]
    assert removed[:2] == [["removed", domain.removeprefix("ktrdr-")], ["removed", request]]
    assert not list((cluster.place / f"local-{node}/0/templates").glob(".*"))


@pytest.mark.full
def test_a_node_that_is_cut_off_destroys_its_vm(
    far: Far, cluster: Cluster, hosts: dict[str, dict[str, list[str]]]
) -> None:
    make_project(far, seconds=60)
    [request] = far.call("submit", "--on", "cluster", "--instance-id", "cut").split()
    wait_for_task(far, request, "the work is there")
    attempts = cluster.shared / "0/requests" / request / "attempts"
    node = find_states(far)[request]["node"]
    cluster.cut(node)
    try:
        reported = (attempts / "1/events.jsonl").read_bytes()
        # The lease of the old copy ends, and with it its VM, before the job begins elsewhere.
        wait_for(lambda: not list_host(cluster, node)["domains"], 90)
        wait_for(lambda: (attempts / "2").exists(), 180)
        # It tries to return its evidence for a while.
        assert_as_before(cluster, {node: hosts[node]}, 90)
        [run] = [
            path
            for path in (cluster.place / f"local-{node}/0/runs/cut").iterdir()
            if path.is_dir() and not path.is_symlink()
        ]
        old = read_run(run)
        assert (old["outcome"], old["exit_code"], old["residue"]) == ("interrupted", 130, [])
        far.call("watch", request, limit=LIMIT)
    finally:
        cluster.heal(node)
    state = find_states(far)[request]
    assert (state["attempt"], state["outcome"]) == (2, "passed") and state["node"] != node
    assert (attempts / "1/events.jsonl").read_bytes() == reported and b"the work is there" in reported
    assert not (attempts / "1/outcome.json").exists() and not (attempts / "1/commits.bundle").exists()
    report = json.loads(far.call("fetch", request, "--json"))
    [commit], [refused] = report["commits"], old["commits"]
    assert [far.git("rev-parse", ref) for ref in list_refs(far)] == [commit["commit"]] != [refused["commit"]]
    assert refused["commit"] not in far.git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    # Slurm asks a node that was down about every twentieth time that it looks.
    wait_for(lambda: set(cluster.states().values()) == {"idle"}, 240)
    assert_as_before(cluster, hosts)
