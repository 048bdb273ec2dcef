"""One box that runs: booted from an overlay on the made disk, spoken to over SSH, and looked into for what AppArmor
denied."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from ktrdr_vm.host.paths import PROJECT

from .release import Release
from .root import CLONE, find_or_build, say

# One emulated processor, in one thread: with more the host hangs in its first nested boot.
MEMORY = "6G"
BOOT_LIMIT = 300.0
# A template is four minutes here, and an apply from it five.
LIMIT = 2400.0
EVIDENCE = PROJECT / ".evidence" / "hosts"
_DENIED = re.compile(r'apparmor="DENIED"[^\n]*')


@dataclass(frozen=True)
class Said:
    """How a command in the box ended."""

    code: int
    out: str
    err: str
    seconds: float

    def require(self) -> Said:
        if self.code:
            raise AssertionError(f"exit code {self.code}\n{self.out[-6000:]}\n{self.err[-6000:]}")
        return self


@dataclass
class Box:
    """Use as a context. `backing` is the disk it stands on; what it writes goes into an overlay of its own."""

    release: Release
    backing: Path | None = None
    steps: list[tuple[str, float]] = field(default_factory=list)
    """What was done in it, and the seconds it took."""
    _machine: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Box:
        self.place = find_or_build(self.release)
        self.scratch = Path(tempfile.mkdtemp(prefix="run-", dir=self.place))
        self.overlay = self.scratch / "overlay.qcow2"
        backing = self.backing or self.place / "disk.raw"
        kind = "raw" if backing.suffix == ".raw" else "qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", backing, self.overlay], check=True, timeout=60
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        try:
            self.power_on()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._machine is not None:
            self._machine.kill()
            self._machine.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    # -- power ------------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        arguments = [
            "qemu-system-x86_64", "-accel", "tcg,thread=single,tb-size=1024", "-cpu", "max", "-machine", "q35", "-m", MEMORY, "-smp", "1",
            "-nodefaults", "-display", "none", "-serial", f"file:{self.scratch}/console.log",
            "-kernel", str(self.place / "vmlinuz"), "-initrd", str(self.place / "initrd.img"),
            "-append", "root=/dev/vda rw console=ttyS0 apparmor=1 security=apparmor",
            "-drive", f"file={self.overlay},format=qcow2,if=virtio,cache=unsafe,discard=unmap",
            "-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=n",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip
        log = (self.scratch / "qemu.log").open("ab")
        with log:
            self._machine = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait_up("boot")

    def wait_up(self, what: str) -> None:
        """Until SSH answers and systemd has started what it starts."""
        began = time.monotonic()
        while True:
            assert self._machine is not None and self._machine.poll() is None, (self.scratch / "qemu.log").read_text()
            if self.run("systemctl is-system-running --wait || true", limit=60).code == 0:
                break
            if time.monotonic() - began > BOOT_LIMIT:
                raise AssertionError(
                    f"the box did not come up: {(self.scratch / 'console.log').read_text(errors='replace')[-3000:]}"
                )
            time.sleep(1)
        self._step(what, began)

    def power_off(self) -> None:
        began = time.monotonic()
        self.run("systemctl poweroff", limit=60)
        assert self._machine is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._machine.wait(120)
        self._machine.kill()
        self._machine.wait()
        self._step("power off", began)

    def reboot(self) -> None:
        before = self.run("cat /proc/sys/kernel/random/boot_id").require().out
        self.run("systemctl reboot", limit=60)
        end = time.monotonic() + BOOT_LIMIT
        while (now := self.run("cat /proc/sys/kernel/random/boot_id", limit=30)).code or now.out == before:
            assert time.monotonic() < end, "the box does not reboot"
            time.sleep(1)
        self.wait_up("reboot")

    def keep_disk(self, target: Path) -> Path:
        """The disk as it is now, for boxes that begin where this one ended. The box is off."""
        os.replace(self.overlay, target)
        return target

    # -- in it ------------------------------------------------------------------------------------------------------

    def ssh(self, user: str = "root") -> list[str]:
        options = (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=60",
            "BatchMode=yes",
        )
        words = [word for option in options for word in ("-o", option)]
        return [
            "ssh",
            "-F",
            "/dev/null",
            "-i",
            str(self.place / "id"),
            "-p",
            str(self.port),
            *words,
            f"{user}@127.0.0.1",
        ]

    def run(
        self, script: str, *, limit: float = 120, stdin: bytes | None = None, step: str = "", user: str = "root"
    ) -> Said:
        """A shell script, by default as root. `step` names it in the list of what took how long."""
        began = time.monotonic()
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        try:
            done = subprocess.run([*self.ssh(user), script], capture_output=True, timeout=limit, check=False, **given)  # type: ignore[call-overload]
            said = Said(
                done.returncode,
                done.stdout.decode(errors="replace"),
                done.stderr.decode(errors="replace"),
                time.monotonic() - began,
            )
        except subprocess.TimeoutExpired as error:
            said = Said(
                124,
                (error.stdout or b"").decode(errors="replace"),
                (error.stderr or b"").decode(errors="replace"),
                limit,
            )
        if step:
            self._step(step, began)
        return said

    def _step(self, what: str, began: float) -> None:
        seconds = time.monotonic() - began
        self.steps.append((what, round(seconds, 1)))
        say(f"Debian {self.release.version}: {what}: {seconds:.0f} s")

    def copy_checkout(self, place: str = CLONE) -> None:
        """What Git knows of this checkout, as it is on the disk now, as a repository of one commit."""
        listed = subprocess.run(
            ["git", "-C", PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        names = b"\0".join(name for name in listed.split(b"\0") if name and (PROJECT / os.fsdecode(name)).is_file())
        packed = subprocess.run(
            ["tar", "-C", PROJECT, "-c", "-z", "--null", "-T", "-"],
            input=names,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        commit = "git -c user.name=box -c user.email=box@example.org commit --allow-empty -qm box"
        script = (
            f"mkdir -p {place} && cd {place} && tar xz --no-same-owner && git init -q -b main && git add -A && {commit}"
        )
        self.run(script, stdin=packed, limit=300, step="copy the checkout").require()

    # -- what it says of itself -------------------------------------------------------------------------------------

    def denials(self) -> list[str]:
        """Every line of this boot in which AppArmor says that it denied something, from the kernel's log and the
        journal of audit."""
        said = self.run("journalctl -b --no-pager -o cat _TRANSPORT=kernel + _TRANSPORT=audit; dmesg").require().out
        return sorted(set(_DENIED.findall(said)))

    def keep_evidence(self, target: Path) -> None:
        """What explains a failure."""
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.scratch / "console.log", target / "console.log")
        logs = (
            "cd /var && tar cz lib/ktrdr-vm/runs lib/ktrdr-vm/templates/*.log lib/ktrdr-vm/instances/*/guard/guard.log"
            " lib/ktrdr-vm/instances/*/egress.jsonl log/libvirt"
        )
        (target / "logs.tar.gz").write_bytes(
            subprocess.run(
                [*self.ssh(), logs], stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
            ).stdout
        )
        (target / "journal.txt").write_text(self.run("journalctl -b --no-pager | tail -n 3000").out)
