"""The clients that people have, against a running instance, with nothing but what `ssh-config` prints."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from laboratory.browser import running_browser
from laboratory.command import PROGRAM, run
from laboratory.instances import LabInstance
from laboratory.lab import Lab

LIMIT = 120
PORT = 8099


@pytest.fixture
def config(lab: Lab, instance: LabInstance, tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(run(lab, "ssh-config", instance.instance_id).stdout)
    return path


def call(
    *words: str | Path, stdin: str = "", cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], input=stdin, capture_output=True, text=True, timeout=LIMIT, cwd=cwd, env=environment
    )  # fmt: skip


def test_ssh_knows_it_by_its_name_and_forwards_no_agent(instance: LabInstance, config: Path) -> None:
    environment = {**os.environ, "SSH_AUTH_SOCK": "/nonexistent/agent"}
    done = call(
        "ssh",
        "-F",
        config,
        instance.instance_id,
        "hostname; echo ${SSH_AUTH_SOCK:-none}; exit 7",
        environment=environment,
    )
    assert (done.returncode, done.stdout) == (7, f"{instance.instance_id}\nnone\n"), done.stderr


def test_one_block_serves_every_instance_by_its_name(lab: Lab, instance: LabInstance, tmp_path: Path) -> None:
    path = tmp_path / "wildcard"
    path.write_text(run(lab, "ssh-config", "--wildcard").stdout)
    done = call("ssh", "-F", path, f"{instance.instance_id}.ktrdr", "hostname; exit 7")
    assert (done.returncode, done.stdout) == (7, f"{instance.instance_id}\n"), done.stderr
    gone = call("ssh", "-F", path, "no-such-instance.ktrdr", "true")
    assert gone.returncode == 255 and "no network namespace" in gone.stderr
    assert run(lab, "ssh-config", "--wildcard", instance.instance_id).code == 2


def test_scp_sftp_and_rsync_both_ways(instance: LabInstance, config: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree" / "deep"
    tree.mkdir(parents=True)
    (tree / "file with blanks").write_text("one\n")
    name = instance.instance_id
    for words in (
        ("scp", "-F", config, "-r", tmp_path / "tree", f"{name}:by-scp"),
        ("scp", "-F", config, "-r", f"{name}:by-scp", tmp_path / "back-scp"),
        ("rsync", "-a", "-e", f"ssh -F {config}", f"{tmp_path}/tree/", f"{name}:by-rsync/"),
        ("rsync", "-a", "-e", f"ssh -F {config}", f"{name}:by-rsync/", f"{tmp_path}/back-rsync/"),
    ):
        done = call(*words)
        assert done.returncode == 0, done.stderr
    batch = f"put -r {tmp_path}/tree by-sftp\nget -r by-sftp {tmp_path}/back-sftp\n"
    done = call("sftp", "-F", config, "-b", "-", name, stdin=batch)
    assert done.returncode == 0, done.stderr
    for way in ("scp", "rsync", "sftp"):
        assert (tmp_path / f"back-{way}" / "deep" / "file with blanks").read_text() == "one\n", way


def test_ansible_itself_reaches_it_and_runs_a_playbook(lab: Lab, instance: LabInstance, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(run(lab, "ssh-config", "--inventory", instance.instance_id).stdout)
    hosts = yaml.safe_load(inventory.read_text())["all"]["hosts"]
    assert list(hosts) == [instance.instance_id]
    words = hosts[instance.instance_id]["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in words and "ForwardAgent=no" in words, (
        "the pinned key binds Ansible's own OpenSSH too"
    )
    environment = {
        **os.environ,
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        # A socket, whose path has at most 107 bytes.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/tmp/{instance.instance_id}",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }
    ping = call(
        sys.executable,
        "-m",
        "ansible",
        "adhoc",
        "-i",
        inventory,
        instance.instance_id,
        "-m",
        "ping",
        environment=environment,
    )
    assert ping.returncode == 0 and '"ping": "pong"' in ping.stdout, ping.stdout + ping.stderr
    playbook = tmp_path / "play.yaml"
    playbook.write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.command: {cmd: hostname}\n      register: said\n"
        f"    - ansible.builtin.assert: {{that: [\"said.stdout == '{instance.instance_id}'\"]}}\n"
    )
    played = call(sys.executable, "-m", "ansible", "playbook", "-i", inventory, playbook, environment=environment)
    assert played.returncode == 0, played.stdout + played.stderr


def test_exec_has_exit_code_input_and_a_terminal(lab: Lab, instance: LabInstance) -> None:
    name = instance.instance_id
    assert run(lab, "exec", name, "--", "sh", "-c", "exit 42").code == 42
    words = run(lab, "exec", name, "--", "printf", "[%s]", "two words", "$HOME", "'quote'").stdout
    assert words == "[two words][$HOME]['quote']", "word for word"
    fed = call(*PROGRAM, "exec", name, "--", "sha256sum", stdin="x" * 300_000, environment=lab.environment)
    assert fed.stdout.split()[0] == hashlib.sha256(b"x" * 300_000).hexdigest()
    assert run(lab, "exec", name, "--", "sh", "-c", "test -t 1").code == 1
    assert run(lab, "exec", "-t", name, "--", "sh", "-c", "test -t 1").code == 0
    environment = run(lab, "exec", name, "--", "printenv", "KTRDR_INSTANCE_ID", "COMPOSE_PROJECT_NAME").stdout
    assert environment.split() == [name, name]


@contextmanager
def forwarding(lab: Lab, instance: LabInstance) -> Iterator[str]:
    """`ktrdr-vm forward`, and the address that it printed, once somebody listens there."""
    process = subprocess.Popen(
        [*PROGRAM, "forward", instance.instance_id, str(PORT)],
        stderr=subprocess.PIPE,
        text=True,
        env=lab.environment,
        cwd=lab.scratch,
    )
    try:
        assert process.stderr is not None
        url = process.stderr.readline().strip()
        end = time.monotonic() + LIMIT
        while f":{PORT:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_browser_sees_what_the_guest_serves_through_forward(lab: Lab, instance: LabInstance) -> None:
    server = f"import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={PORT}, bind='127.0.0.1')"
    code, said = instance.shell(
        f"mkdir -p /srv/page && echo '<title>from {instance.instance_id}</title>' > /srv/page/index.html && cd /srv/page && "
        f'nohup python3 -c "{server}" >/dev/null 2>&1 & echo $!'
    )
    assert code == 0
    try:
        with forwarding(lab, instance) as url, running_browser() as browser:
            assert url == f"http://127.0.0.1:{PORT}/"
            listening = [
                line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if f":{PORT:04X} " in line
            ]
            assert all(address.startswith("0100007F") for address in listening), "loopback and nothing else"
            browser.get(url)
            assert browser.title == f"from {instance.instance_id}"
    finally:
        instance.shell(f"kill {said.strip()}")
