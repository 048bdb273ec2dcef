"""What the tests without root share: a person's project, and what of the person is left outside of the home."""

from __future__ import annotations

import json
import subprocess

import yaml

from ktrdr_vm.images.store import Image
from laboratory.person import Person
from laboratory.recorder import wait_until

PROFILE = {
    "version": 1,
    "name": "without-root",
    "image": "debian-13-docker",
    "resources": {"vcpus": 1, "memory": "512MiB", "disk": "4GiB"},
    "workspace": {"source": "."},
    "mounts": [{"source": "data", "target": "/mnt/data"}],
    "egress": {"allow": [{"host": "allowed.test.lab", "ports": [80]}]},
    "secrets": [{"name": "token", "source": {"env": "KTRDR_LAB_TOKEN"}}],
}
WORKLOAD = (
    "test $(cat /mnt/data/file) = shared && test $(cat /run/secrets/token) = a-token-of-the-lab"
    " && curl -sf http://allowed.test.lab/ > /dev/null && ! curl -sf -m 5 http://192.168.77.9/"
    " && echo work > work && git add work && git commit -qm work"
)
GATE = """
- hosts: all
  gather_facts: false
  tasks:
    - name: the project is there
      command: test -e run.yaml
      args: {chdir: /workspace}
"""


def make_repository(person: Person) -> None:
    folder = person.home / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data/file").write_text("shared")
    (folder / "playbooks").mkdir()
    (folder / "playbooks/there.yaml").write_text(GATE)
    (folder / "run.yaml").write_text(
        yaml.safe_dump({**PROFILE, "workload": {"command": ["sh", "-c", WORKLOAD]}, "gates": []})
    )
    (folder / "keep.yaml").write_text(yaml.safe_dump({**PROFILE, "mode": "interactive"}))
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=60)
    subprocess.run(["chown", "-R", f"{person.uid}:{person.uid}", person.home], check=True, timeout=60)


def copy_image(person: Person, image: Image) -> None:
    """A copy: a person's state is the person's alone."""
    images = person.state / "images"
    subprocess.run(["mkdir", "-p", "-m", "711", images], check=True)
    subprocess.run(["cp", "-a", "--sparse=always", image.directory, images], check=True, timeout=300)
    subprocess.run(["chown", "-R", f"{person.uid}:{person.uid}", person.home / ".local"], check=True, timeout=60)


def links() -> set[str]:
    """The interfaces of the lab's host."""
    return {
        entry["ifname"]
        for entry in json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    }


# Uids are given again: what an earlier user of the same one has left is not this person's.
_FOUND: dict[int, set[str]] = {}


def outside(person: Person) -> list[str]:
    """What the person owns outside of the home, and did not when the tests began."""
    found = subprocess.run(
        ["find", "/tmp", "/var/tmp", "/run", "/var/lib/libvirt", "/var/log/libvirt", "-xdev", "-user", str(person.uid)],
        capture_output=True, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    own = {path for path in found if not path.startswith((str(person.home), str(person.runtime)))}
    return sorted(own - _FOUND.setdefault(person.uid, own))


def end_world(person: Person) -> None:
    """By its own rule: nothing needs it any more."""
    limit = person.state / "world/idle-limit"
    limit.write_text("0")
    try:
        wait_until(lambda: person.processes() == {}, "the world ends when nobody needs it", 30)
    finally:
        limit.unlink()
