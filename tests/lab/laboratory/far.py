"""A far end over a real sshd on the loopback address, and a client with another state directory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ktrdr_vm.guest.ssh import generate_keypair
from laboratory.recorder import wait_until

FAR = Path(__file__).with_name("far_program.py")
GIT = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@x", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@x"}


def default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Far:
    """A far end: sshd with keys of its own, a state directory, and a client with another one."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.client: tuple[str, ...] = ("-m", "ktrdr_vm")
        host_private, host_public = generate_keypair()
        user_private, user_public = generate_keypair()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        ssh = place / "ssh"
        ssh.mkdir()
        for name, text in (("user_key", user_private), ("host_key", host_private)):
            (ssh / name).touch(mode=0o600)
            (ssh / name).write_text(text)
        (ssh / "authorized_keys").write_text(user_public + "\n")
        (ssh / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_public}\n")
        (ssh / "client").write_text(
            f"Host far\n  HostName 127.0.0.1\n  Port {self.port}\n  IdentityFile {ssh}/user_key\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {ssh}/known_hosts\n"
        )
        (ssh / "server").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {ssh}/host_key\nAuthorizedKeysFile {ssh}/authorized_keys\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\nUseDNS no\n"
            # As beneath another shell: bash reads no start-up file of whoever runs the tests, which may wait for a lock.
            "SetEnv SHLVL=2\n"
        )
        self.home, self.near = place / "far-home", place / "near-home"
        self.settings = place / "far-settings"
        self.more = "ENTER="
        self.set()
        program = place / "ktrdr-vm"
        program.write_text(f'#!/bin/sh\n. {self.settings}\nexec $ENTER {sys.executable} {FAR} "$@"\n')
        program.chmod(0o755)
        configuration = place / "config" / "ktrdr-vm"
        configuration.mkdir(parents=True)
        (configuration / "places.yaml").write_text(
            f"places:\n  far: {{kind: ssh, host: far, ssh_config: {ssh}/client, program: {program}, attempts: 2, grace: 10s}}\n"
            f"  cluster: {{kind: slurm, host: far, ssh_config: {ssh}/client, program: {program}, spool: {place}/shared,"
            f" cache: {place}/node, options: [--partition=vm], grace: 10s}}\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (ssh / "log").open("w") as log:
            self.server = subprocess.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", str(ssh / "server")], stderr=log, preexec_fn=default_signals
            )
        wait_until(self._listens, "sshd listens", 60)
        self.repository = self.make_repository()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def set(self, **settings: str) -> None:
        lines = [
            f'export KTRDR_VM_HOME="${{KTRDR_VM_HOME:-{self.home}}}"',
            *(f"export {name}={value}" for name, value in settings.items()),
        ]
        self.settings.write_text("\n".join([*lines, self.more]) + "\n")

    def make_repository(self) -> Path:
        root = self.place / "project"
        (root / "playbooks").mkdir(parents=True)
        (root / "README").write_text("committed\n")
        (root / "playbooks" / "unit.yaml").write_text("- hosts: all\n  tasks: [{command: 'true'}]\n")
        (root / "base.yaml").write_text("version: 1\nname: base\nimage: debian-13-docker\n")
        (root / "ktrdr.yaml").write_text("extends: base.yaml\nname: project\nworkspace: {source: .}\ngates: [unit]\n")
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("add", "README", "playbooks", "base.yaml")
        self.git("commit", "--quiet", "--message", "one")
        # Uncommitted: the profile itself, and a change.
        (root / "README").write_text("changed\n")
        return root

    def git(self, *words: str) -> str:
        root = self.place / "project"
        return subprocess.run(
            ["git", "-C", str(root), *words], check=True, capture_output=True, text=True, env={**os.environ, **GIT}
        ).stdout.strip()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KTRDR_VM_HOME": str(self.near), "XDG_CONFIG_HOME": str(self.place / "config")}

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, *self.client, *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            cwd=self.repository,
            env=self.environment(),
            stdout=pipe,
            stderr=pipe,
            text=True,
            preexec_fn=default_signals,
        )

    def call(self, *words: str, code: int = 0, limit: float = 120) -> str:
        started = self.start(*words)
        out, err = started.communicate(timeout=limit)
        assert started.returncode == code, (words, out, err)
        self.said = err
        return out

    def cut(self) -> bool:
        """Kill the processes of sshd that carry a connection; True if there was one."""
        found = subprocess.run(
            ["pgrep", "--parent", str(self.server.pid)], capture_output=True, text=True
        ).stdout.split()
        for pid in found:
            os.kill(int(pid), signal.SIGKILL)
        return bool(found)

    def count_runs(self) -> int:
        path = self.home / "runs-begun"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def stop(self) -> None:
        """End sshd, and the runs that outlive their connections as they are meant to."""
        self.server.kill()
        self.server.wait(10)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._find_runs():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            with suppress(AssertionError):
                wait_until(lambda: not self._find_runs(), "the runs of the far end end", 20)

    def _find_runs(self) -> list[int]:
        """Processes of `run-request` for a folder of this far end."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"run-request" in words and any(word.startswith(os.fsencode(self.place)) for word in words[-2:]):
                    found.append(int(path.parent.name))
        return found
