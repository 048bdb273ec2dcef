"""Cloud images by URL: a stand-in for each that is published boots, is isolated, and gives its commits back.

`KTRDR_GOLDEN=write` writes what was tried to tests/lab/stock-images.json, of which docs/images.md has a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import world
from laboratory.command import Ended, assert_nothing_left, start
from laboratory.lab import Lab
from laboratory.stock import StockImage, read_tried, write_tried

from ktrdr_vm.gates.modules.base import NO_PYTHON

pytestmark = [pytest.mark.vm, pytest.mark.full]

CANARY = "CANARY-stock-4b1d"
# The owner's policy allows images of this disk, which it usually does not. It stands in no folder of the machine.
PROGRAM = "from ktrdr_vm.policy import load; load.POLICY_PATH = {policy!r}; from ktrdr_vm.cli.main import main; main()"
PROFILE = """\
version: 1
name: stock-{flavour}
image:
  url: {url}
  sha256: {sha256}
resources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}
workspace: {{source: ., target: /workspace}}
egress:
  allow:
    - {{host: allowed.test.lab, ports: [80]}}
secrets:
  - {{name: canary, source: {{env: KTRDR_CANARY}}, ttl: 1h}}
workload: {{command: [sh, work.sh], timeout: 10m}}
verify: same
gates: [./gates/first.yaml, ./gates/then.yaml, isolation]
vars:
  flavour: {flavour}
  has_python: {has_python}
  allowed_command: curl -fsS --max-time 60 -o /dev/null http://allowed.test.lab/
"""
WORK = """\
set -eu
echo "of $KTRDR_INSTANCE_ID" > done.txt
git add done.txt
git commit -qm 'the work'
"""
# What needs no python3.
FIRST = """\
- name: first
  hosts: all
  gather_facts: false
  tasks:
    - name: it is the instance
      ansible.builtin.shell:
        cmd: |
          set -eux
          cat /etc/os-release
          cloud-init status --wait --long || echo "cloud-init status: $?"
          test "$(uname -n)" = "$KTRDR_INSTANCE_ID"
          test "$(cat /etc/hostname)" = "$KTRDR_INSTANCE_ID"
          getent hosts "$KTRDR_INSTANCE_ID"
          tr -dc 0-9a-f < /etc/machine-id | wc -c | grep -qx 32
          grep -q "$KTRDR_INSTANCE_ID" /etc/ktrdr/identity.json
          test "$(id -un)" = ktrdr
          test -z "$(getent passwd {{ flavour }})"
          # The file system fills the disk of the profile.
          test "$(df --output=size --block-size=1M / | tail -n 1)" -gt 9000
    - name: it has sudo
      ansible.builtin.command: {cmd: id -un}
      become: true
      register: root
    - name: it has sudo as root and not as the user
      ansible.builtin.assert: {that: [root.stdout == 'root']}
    - name: the secret is there for the user alone
      ansible.builtin.shell:
        cmd: |
          set -eux
          stat -c '%U %a' /run/secrets/canary | grep -qx 'ktrdr 400'
          grep -q CANARY-stock /run/secrets/canary
          stat -f -c %T /run/secrets | grep -qx tmpfs
    - name: the allowed destination is reachable
      ansible.builtin.command: {cmd: curl -fsS --max-time 60 http://allowed.test.lab/}
    - name: another name is not
      ansible.builtin.command: {cmd: curl -sS --max-time 60 http://evil.test.lab/}
      register: name
      failed_when: name.rc == 0
    - name: another address is not
      ansible.builtin.command: {cmd: curl -sS --connect-timeout 3 http://203.0.113.66:22/}
      register: address
      failed_when: address.rc == 0
    - name: ubuntu is as published
      ansible.builtin.shell:
        cmd: |
          set -eux
          systemctl is-active ssh.socket systemd-networkd.service systemd-resolved.service
          test "$(systemctl is-enabled ssh.service)" = disabled
          ls -l /etc/netplan
          findmnt -n -o SOURCE,LABEL / | grep -w cloudimg-rootfs
      become: true
      when: flavour == 'ubuntu'
    - name: fedora is as published
      ansible.builtin.shell:
        cmd: |
          set -eux
          systemctl is-active NetworkManager.service chrony.service sshd.service
          test "$(systemctl is-active systemd-networkd.service)" = inactive
          nmcli --terse --fields NAME,DEVICE connection show --active
          test -z "$(command -v python3)$(getent group sudo)"
          id ktrdr
          getenforce
          test "$(getenforce)" = Permissive
          stat -c %C /usr/sbin/sshd | grep -q :sshd_exec_t:
          # What an enforcing policy would have denied, for whoever reads the report.
          ls -Zd /workspace /workspace/work.sh /run/secrets /run/secrets/canary /etc/ktrdr /home/ktrdr/.ssh
          dmesg | grep 'avc:  denied' | tail -n 40 || :
      become: true
      when: flavour == 'fedora'
"""
THEN = """\
- name: then
  hosts: all
  gather_facts: false
  tasks:
    - name: a copy without python3
      ansible.builtin.copy: {content: "x\\n", dest: /tmp/without}
      ignore_errors: true
      when: not has_python
    - name: a script without python3
      ansible.builtin.script: {cmd: probe.py, executable: python3}
      ignore_errors: true
      when: not has_python
    - name: python3 is installed
      ansible.builtin.shell: {cmd: ln -s /usr/libexec/platform-python /usr/bin/python3}
      become: true
      when: not has_python
    - name: a copy
      ansible.builtin.copy: {content: "by the gate\\n", dest: /srv/copied, owner: ktrdr, mode: "0600"}
      become: true
    - name: a file of the host
      ansible.builtin.copy: {src: page.txt, dest: /srv/page, mode: "0644"}
      become: true
    - name: the copies are there
      ansible.builtin.shell: {cmd: "grep -qx 'by the gate' /srv/copied && grep -qx 'a page' /srv/page"}
    - name: a request
      ansible.builtin.uri: {url: "http://allowed.test.lab/", return_content: true}
      register: answer
    - name: its answer
      ansible.builtin.assert: {that: [answer.status == 200, answer.content | length > 0]}
"""


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    argv = ["git", *settings, *words]
    return subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


class Tried:
    """One apply with a stand-in."""

    def __init__(self, lab: Lab, stock: StockImage) -> None:
        self.stock = stock
        self.place = lab.scratch / f"stock-{stock.flavour.name}"
        (self.place / "gates").mkdir(parents=True)
        self.has_python = stock.flavour.name != "fedora"
        profile = PROFILE.format(
            flavour=stock.flavour.name,
            url=stock.disk.as_uri(),
            sha256=stock.sha256,
            has_python=json.dumps(self.has_python),
        )
        for name, text in (
            ("profile.yaml", profile),
            ("work.sh", WORK),
            ("gates/first.yaml", FIRST),
            ("gates/then.yaml", THEN),
            ("gates/page.txt", "a page\n"),
            ("gates/probe.py", "print('it ran')\n"),
        ):
            (self.place / name).write_text(text)
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "base"]):
            git(self.place, *words)
        policy = lab.home.root / "stock-policy.yaml"
        policy.write_text(f"images: {{sources: ['{stock.disk.parent.parent.as_uri()}/']}}\n")
        self.instance_id = lab.new_id(f"stock-{stock.flavour.name}")
        mark = lab.recorder.mark()
        self.ended: Ended = start(
            lab,
            self.instance_id,
            *("apply", "profile.yaml", "--instance-id", self.instance_id, "--json"),
            environment={"KTRDR_CANARY": CANARY},
            cwd=self.place,
            program=[sys.executable, "-c", PROGRAM.format(policy=str(policy))],
        ).wait()
        self.arrived = lab.recorder.endpoints(mark)

    @property
    def report(self) -> dict[str, Any]:
        assert self.ended.stdout, self.ended.stderr
        return self.ended.report

    def tasks(self, gate: str) -> dict[str, dict[str, Any]]:
        found = next(one for one in self.report["gates"] if one["name"].endswith(gate))
        return {task["name"]: task for task in found["tasks"]}


@pytest.fixture(scope="module")
def tried(lab: Lab, stock: StockImage) -> Iterator[Tried]:
    """One boot of each; the tests below look at what it left."""
    yield Tried(lab, stock)


def test_it_passes_and_leaves_nothing(lab: Lab, tried: Tried) -> None:
    assert tried.ended.code == 0, tried.ended.stderr
    assert tried.report["outcome"] == "passed" and tried.report["residue"] == []
    assert [gate["outcome"] for gate in tried.report["gates"]] == ["passed"] * 3, tried.report["gates"]
    assert "residue: none" in tried.ended.stderr
    assert_nothing_left(lab, tried.instance_id)


def test_only_what_is_allowed_is_reached(tried: Tried) -> None:
    allowed = {(row["host"], row["port"]) for row in tried.report["egress"]["allowed"]}
    denied = {row["host"] or row["address"] for row in tried.report["egress"]["denied"]}
    assert allowed == {("allowed.test.lab", 80)}
    assert {"evil.test.lab", world.EVIL} <= denied
    assert tried.arrived <= {("tcp", world.WEB, 80), ("udp", world.DNS, 53)}


def test_cloud_init_of_the_image_has_no_objection(tried: Tried) -> None:
    said = tried.tasks("first")["it is the instance"]["stdout"]
    assert "\nstatus: done\n" in said and "\nextended_status: done\n" in said, said


def test_its_commits_come_back(tried: Tried) -> None:
    ref = f"refs/ktrdr/{tried.instance_id}/main"
    assert git(tried.place, "show", f"{ref}:done.txt") == f"of {tried.instance_id}"
    assert git(tried.place, "show", "-s", "--format=%s", ref) == "the work"


def test_a_secret_is_nowhere_in_the_evidence(lab: Lab, tried: Tried) -> None:
    assert CANARY not in tried.ended.stdout + tried.ended.stderr


def test_without_python_a_gate_says_what_to_do(tried: Tried) -> None:
    tasks = tried.tasks("then")
    if tried.has_python:
        assert tasks["a copy without python3"]["outcome"] == "skipped"
        return
    assert tasks["a copy without python3"]["outcome"] == "ignored"
    assert tasks["a copy without python3"]["message"] == f"copy requires {NO_PYTHON}"
    assert tasks["a script without python3"]["message"] == f"the script requires {NO_PYTHON}"


def test_what_was_tried_is_what_the_documentation_says(tried: Tried) -> None:
    assert tried.ended.code == 0
    if os.environ.get("KTRDR_GOLDEN") == "write":
        write_tried(tried.stock)
    assert read_tried()[tried.stock.flavour.name]["content"] == tried.stock.flavour.digest
