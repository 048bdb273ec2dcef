"""Three runs at once, of one profile with the same ports: all pass, and nothing of one is seen in another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from laboratory.command import assert_nothing_left, start
from laboratory.instances import make_workspace
from laboratory.lab import Lab

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("image")]

PROFILE = """\
version: 1
name: parallel
image: debian-13-docker
resources: {vcpus: 1, memory: 1536MiB, disk: 10GiB}
workspace: {source: ., target: /workspace}
egress: {allow: [{host: allowed.test.lab, ports: [80]}]}
gates: [startability, ./gates/whose.yaml]
vars: {project_src: /workspace/stack, health_timeout: 600}
gate_timeout: 1h
artifacts: [/srv/whose]
"""
WHOSE = """\
- name: whose
  hosts: all
  tasks:
    - name: leave a trace and look for others
      ansible.builtin.shell:
        cmd: |
          set -e
          mkdir -p /srv/whose
          hostname > /srv/whose/hostname
          docker ps -a --format '{{ "{{.Names}}" }}' > /srv/whose/containers
          curl -sS --fail --max-time 120 http://allowed.test.lab/ > /srv/whose/fetched
          cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id > /srv/whose/ids
      become: true
"""


def test_three_at_once(lab: Lab) -> None:
    place = make_workspace(lab.scratch / "parallel")
    (place / "gates").mkdir()
    (place / "gates" / "whose.yaml").write_text(WHOSE)
    (place / "profile.yaml").write_text(PROFILE)
    ids = [lab.new_id(f"stream-{word}") for word in ("one", "two", "three")]
    runs = [start(lab, one, "apply", "profile.yaml", "--instance-id", one, "--json", cwd=place) for one in ids]
    ended = [run.wait(3000) for run in runs]
    assert [one.code for one in ended] == [0, 0, 0], "\n".join(one.stderr for one in ended)
    traces = []
    for one, done in zip(ids, ended, strict=True):
        directory = (lab.home.runs / one / "latest").resolve()
        others = [other for other in ids if other != one]
        assert done.report["instance_id"] == one and done.report["residue"] == []
        for name in ("report.json", "events.jsonl", "egress.jsonl", "plan.json", "console.log", "junit.xml"):
            text = (directory / name).read_text(errors="replace")
            assert not any(other in text for other in others), f"{name} of {one} names another"
        rows = [json.loads(line) for line in (directory / "egress.jsonl").read_text().splitlines()]
        assert {row["instance_id"] for row in rows} == {one}
        traces.append({path.name: path.read_text() for path in Path(directory, "artifacts/srv/whose").iterdir()})
        assert_nothing_left(lab, one)
    assert [trace["hostname"].strip() for trace in traces] == ids
    assert len({trace["ids"] for trace in traces}) == 3
