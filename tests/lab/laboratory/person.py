"""A user of this machine without root: made for a session, with subordinate ids, and removed with all that runs as one
of them."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.host.paths import PROJECT
from laboratory.command import Ended

# Ranges of this size, far above those that useradd gives by itself.
_FIRST, _COUNT = 300_000_000, 65_536


@dataclass(frozen=True)
class Person:
    """`home` is of mode 0700, `ids` are the subordinate ones, `python` runs the program of this checkout as them."""

    name: str
    uid: int
    home: Path
    ids: range
    python: Path

    @property
    def state(self) -> Path:
        return self.home / ".local/state/ktrdr-vm"

    @property
    def world(self) -> Path:
        """The folder of the world that serves the state directory."""
        return self.runtime / "ktrdr-vm" / hashlib.sha256(os.fsencode(self.state)).hexdigest()[:12]

    @property
    def runtime(self) -> Path:
        return Path(f"/tmp/ktrdr-vm-{self.uid}")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "LOGNAME": self.name,
            "USER": self.name,
            "LC_ALL": "C.UTF-8",
            "KTRDR_LAB_TOKEN": "a-token-of-the-lab",
        }

    def start(
        self,
        *words: str | Path,
        program: list[str | Path] | None = None,
        environment: dict[str, str] | None = None,
        stdout: int | None = subprocess.PIPE,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        argv = program if program is not None else [self.python, "-m", "ktrdr_vm"]
        groups = [self.uid, *([kvm] if (kvm := _find_kvm()) else [])]
        return subprocess.Popen(
            # As systemd's logins of Debian 13 are: a limit below what libvirt would raise it to.
            [str(word) for word in ("prlimit", "--core=0:0", "--", *argv, *words)],
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stdout, text=True, errors="replace",
            env={**self.environment, **(environment or {})}, cwd=cwd or self.home, user=self.uid, group=self.uid, extra_groups=groups,
        )  # fmt: skip

    def run(self, *words: str | Path, limit: float = 300, program: list[str | Path] | None = None) -> Ended:
        started = self.start(*words, program=program)
        try:
            out, err = started.communicate(timeout=limit)
        finally:
            if started.poll() is None:
                started.kill()
        return Ended(started.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Everything that runs as this person or as one of the subordinate ids, zombies aside."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    uid = entry.stat().st_uid
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    if words and (uid == self.uid or uid in self.ids or _real_uid(entry) in (self.uid, *self.ids[:1])):
                        found[int(entry.name)] = words
        return found

    def find(self, part: str) -> list[int]:
        return sorted(pid for pid, words in self.processes().items() if part in words)


@contextlib.contextmanager
def make_person(number: int = 0) -> Iterator[Person]:
    """`number`, 0 or 1, tells the persons of a session apart."""
    name = f"ktrdr-{os.getpid()}-{number}"
    first = _FIRST + (os.getpid() % 5_000 * 2 + number) * _COUNT
    words = ["--create-home", "--home-dir", f"/var/tmp/{name}", "--shell", "/bin/sh", "--user-group"]
    subprocess.run(["useradd", *words, name], check=True, timeout=60, capture_output=True)
    try:
        for option in ("--del-subuids", "--del-subgids"):
            for line in Path("/etc", option.removeprefix("--del-").rstrip("s")).read_text().splitlines():
                if line.startswith(f"{name}:"):
                    _, old, count = line.split(":")
                    subprocess.run(
                        ["usermod", option, f"{old}-{int(old) + int(count) - 1}", name], check=True, timeout=60
                    )
        ids = f"{first}-{first + _COUNT - 1}"
        subprocess.run(["usermod", "--add-subuids", ids, "--add-subgids", ids, name], check=True, timeout=60)
        if kvm := _find_kvm():
            subprocess.run(["usermod", "--add-subgids", f"{kvm}-{kvm}", name], check=True, timeout=60)
        account = pwd.getpwnam(name)
        home = Path(account.pw_dir)
        home.chmod(0o700)
        with _python_for_others() as python:
            person = Person(name, account.pw_uid, home, range(first, first + _COUNT), python)
            # Uids are given again: what an earlier user of the same one has left is not this person's.
            shutil.rmtree(person.runtime, ignore_errors=True)
            try:
                yield person
            finally:
                _end_all(person)
                shutil.rmtree(person.runtime, ignore_errors=True)
    finally:
        subprocess.run(["userdel", "--remove", name], timeout=60, capture_output=True)


def _find_kvm() -> int:
    with contextlib.suppress(KeyError):
        return grp.getgrnam("kvm").gr_gid
    return 0


def _real_uid(entry: Path) -> int:
    """That of a process which may not be traced, whose files in /proc are root's."""
    for line in (entry / "status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    return -1


def _end_all(person: Person) -> None:
    for _ in range(50):
        found = person.processes()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


@contextlib.contextmanager
def _python_for_others() -> Iterator[Path]:
    """The interpreter of this environment, or where only root may run it, the system's with the same packages."""
    own = Path(sys.executable)
    if all(part.stat().st_mode & 0o005 == 0o005 for part in (*own.resolve().parents, *PROJECT.parents, PROJECT)):
        yield own
        return
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    system = Path("/usr/bin", version)
    if not system.exists() or not all(part.stat().st_mode & 0o005 == 0o005 for part in (*PROJECT.parents, PROJECT)):
        raise FileNotFoundError(
            f"another user can run neither {own.resolve()} nor {system} with the packages of {PROJECT}"
        )
    with tempfile.TemporaryDirectory(prefix="ktrdr-lab-python-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        subprocess.run([system, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
        packages = Path(folder, "lib", version, "site-packages")
        shutil.rmtree(packages)
        packages.symlink_to(Path(sys.prefix, "lib", version, "site-packages"))
        yield Path(folder, "bin", "python")


def open_above(path: Path, bits: int = 0o011) -> None:
    """Give everybody else the rights `bits` to every folder above `path` that lacks them: a person of another uid is
    to enter it. A world cannot change those of the host, which have them."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if mode & bits != bits:
            folder.chmod(mode | bits)
