"""A Slurm cluster without systemd: a controller and two nodes, each node with network, UTS, mount and process
namespaces of its own.

The folder `shared` is on both nodes, `local` is another one on each. A node that is cut off can neither reach the
controller nor write to the shared folder.

Nodes share the kernel and the root file system. What tells two hosts of VMs apart is in their namespaces: taps, tables
and network namespaces, libvirtd with its folders, the processes, and the cache of ktrdr-vm, which is in `local`.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ktrdr_vm.host.accelerator import CACHE
from laboratory.daemons import STATE

NODES = ("n1", "n2")
_LIMIT = 60
_CONFIGURATION = """\
ClusterName=lab
SlurmctldHost=ctl(10.77.0.1)
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
SlurmdTimeout={lost}
ReturnToService=2
KillWait={kill_wait}
InactiveLimit=0
MaxArraySize=2001
GresTypes=kvm
NodeName=n1 NodeAddr=10.77.0.11 CPUs={cpus} RealMemory=16000 Gres=kvm:{slots} State=UNKNOWN
NodeName=n2 NodeAddr=10.77.0.12 CPUs={cpus} RealMemory=16000 Gres=kvm:{slots} State=UNKNOWN
PartitionName=vm Nodes=n1,n2 Default=YES State=UP
"""

# The shares decide alone: what a user has had lately, and not the order of submission.
_SHARES = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=10.77.0.1
AccountingStoragePass={place}/munge.socket
PriorityType=priority/multifactor
PriorityWeightFairshare=1000000
PriorityCalcPeriod=1
"""
_DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
DbdHost=ctl
DbdAddr=10.77.0.1
SlurmUser=root
LogFile={place}/slurmdbd.log
PidFile={place}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
StorageLoc=slurm
"""


# What the owner of a cluster has for VMs. A test may write another one.
_EPILOG = """\
Epilog={place}/epilog
"""

# What a node is given to run VMs. /sys shows the network of whoever mounted it, so it is mounted again, with the cgroups
# that were beneath the old one; the verdict about KVM is that of the machine.
_HOST = """\
mkdir -p local/0/images
mount --bind {images} local/0/images
mount --rbind /sys/fs/cgroup /run/netns
mount -t sysfs lab /sys
mount --rbind /run/netns /sys/fs/cgroup
umount -l /run/netns
for folder in /run/netns /run/ktrdr-vm {state}; do
    [ ! -d $folder ] || mount -t tmpfs -o mode=0755 lab $folder
done
[ ! -e accelerator.json ] || install -D -m 644 accelerator.json {verdict}
for daemon in virtlogd libvirtd; do
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 {reaper} $daemon --pid-file /run/libvirt/$daemon.pid &
done
exec {reaper} """


class Cluster:
    """`lost` is the time in seconds after which a node that is silent is DOWN; `slots` are the VMs of each node;
    `kill_wait` is the time between SIGTERM and SIGKILL.

    With `images`, a folder of images, each node is a host of VMs with a libvirtd of its own.

    With `shares`, users have fair shares, which slurmdbd keeps in a MariaDB of the cluster's own.
    """

    def __init__(
        self,
        place: Path,
        *,
        lost: int = 20,
        slots: int = 2,
        cpus: int = 8,
        kill_wait: int = 10,
        shares: tuple[str, ...] = (),
        images: Path | None = None,
    ) -> None:
        self._shares = shares
        self._images = images
        self.place = place
        self.shared = place / "shared"
        self.local = place / "local"
        self._spaces: dict[str, subprocess.Popen[bytes]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for path in (self.shared, self.local, place / "state"):
            path.mkdir(parents=True)
        for node in NODES:
            (place / f"spool-{node}").mkdir()
            (place / f"local-{node}").mkdir()
        self._configuration = place / "slurm.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(place=place, lost=lost, slots=slots, cpus=cpus, kill_wait=kill_wait)
            + (_SHARES.format(place=place) if shares else "")
            + (_EPILOG.format(place=place) if images is not None else "")
        )
        (place / "gres.conf").write_text(f"Name=kvm Count={slots}\n")
        (place / "cgroup.conf").write_text("CgroupAutomount=no\n")
        self.set_epilog("true")
        if images is not None and CACHE.exists():
            (place / "accelerator.json").write_bytes(CACHE.read_bytes())
        key = place / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def set_epilog(self, line: str) -> None:
        """What a node runs after each job."""
        (self.place / "epilog").write_text(f"#!/bin/sh\n{line}\n")
        (self.place / "epilog").chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SLURM_CONF": str(self._configuration),
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
        }

    def inside(self, node: str = "ctl") -> list[str]:
        """Words before a program that give it the network of the controller or of a node."""
        return ["nsenter", f"--net={self._space(node)}"]

    def _space(self, node: str) -> Path:
        # Of a process: a name in /run/netns may be removed by whoever tidies up there.
        return Path(f"/proc/{self._spaces[node].pid}/ns/net")

    def _add_space(self, node: str) -> None:
        words = ["unshare", "--net", "sleep", "infinity"]
        self._spaces[node] = subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=default_signals)
        _wait(lambda: self._space(node).readlink() != Path("/proc/self/ns/net").readlink(), f"the network of {node}")

    def start(self) -> None:
        self._add_space("ctl")
        self._in("ctl", "link", "add", "br0", "type", "bridge")
        self._in("ctl", "addr", "add", "10.77.0.1/24", "dev", "br0")
        for link in ("lo", "br0"):
            self._in("ctl", "link", "set", link, "up")
        munged = [
            "munged",
            "--foreground",
            "--force",
            f"--socket={self.place}/munge.socket",
            f"--key-file={self.place}/munge.key",
        ]
        munged += [
            f"--pid-file={self.place}/munged.pid",
            f"--log-file={self.place}/munged.log",
            f"--seed-file={self.place}/munge.seed",
        ]
        self._start("munged", munged)
        _wait((self.place / "munge.socket").exists, "munged")
        if self._shares:
            self._start_accounting()
        self.start_controller()
        for number, node in enumerate(NODES):
            self._add_space(node)
            peer = ("peer", "name", "eth0", "netns", str(self._spaces[node].pid))
            self._in("ctl", "link", "add", node, "type", "veth", *peer)
            self._in("ctl", "link", "set", node, "master", "br0", "up")
            self._in(node, "addr", "add", f"10.77.0.{11 + number}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                self._in(node, "link", "set", link, "up")
            self.start_node(node)
        _wait(lambda: set(self.states().values()) == {"idle"}, "both nodes")

    def _start_accounting(self) -> None:
        """An account for each user of `shares`, with the same share."""
        data = self.place / "database"
        (data / "mysql").mkdir(parents=True)
        made = ["mariadbd", "--no-defaults", "--bootstrap", "--user=root", f"--datadir={data}", "--skip-grant-tables"]
        # mariadb-install-db does this, with programs of a package that is not needed otherwise.
        tables = b"use mysql;\n" + Path("/usr/share/mysql/mysql_system_tables.sql").read_bytes()
        subprocess.run(made, input=tables, check=True, capture_output=True, timeout=_LIMIT)
        words = [
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            f"--socket={self.place}/database.socket",
        ]
        # Nobody but the processes of this network can reach it.
        words += ["--bind-address=127.0.0.1", "--skip-grant-tables", "--innodb-buffer-pool-size=64M"]
        self._start("mariadbd", [*self.inside(), *words])
        _wait((self.place / "database.socket").exists, "mariadbd")
        configuration = self.place / "slurmdbd.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(_DATABASE.format(place=self.place))
        named = ["unshare", "--uts", "sh", "-c", 'hostname ctl && exec "$@"', "sh"]
        self._start("slurmdbd", [*self.inside(), *named, "slurmdbd", "-D"])
        manage = ("sacctmgr", "--immediate", "add")
        _wait(
            lambda: (
                "lab"
                in self.call(*manage, "cluster", "lab", check=False)
                + self.call("sacctmgr", "--noheader", "list", "cluster", check=False)
            ),
            "slurmdbd",
        )
        for user in self._shares:
            self.call(*manage, "account", f"of-{user}", "fairshare=1")
            self.call(*manage, "user", user, f"account=of-{user}", "fairshare=1")

    def start_controller(self) -> None:
        self._start(
            "slurmctld",
            [*self.inside(), "unshare", "--uts", "sh", "-c", 'hostname ctl && exec "$@"', "sh", "slurmctld", "-D"],
        )

    def stop_controller(self) -> None:
        """Ask it to end, as a service manager does: its state is on the disk."""
        process = self._processes.pop("slurmctld")
        process.terminate()
        process.wait(_LIMIT)

    def start_node(self, node: str) -> None:
        """Its processes end with the first one, as those of a host do."""
        apart = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        # With --export=NONE a node asks a login shell for the environment of each job. What the person who runs the
        # tests does at a login, and how long it takes, is none of theirs.
        quiet = "for f in .profile .bash_profile .bashrc; do [ ! -e ~/$f ] || mount --bind /dev/null ~/$f; done"
        mounts = f"mount --bind shared shared\nmount --bind local-{node} local"
        lines = (f"cd {self.place}", f"hostname {node}", quiet, mounts, f"{self._render_host()}slurmd -D -N {node}")
        self._start(node, [*self.inside(node), *apart, "sh", "-ec", "\n".join(lines)])
        if self._images is not None:
            _wait(lambda: bool(self._find_first(node)), node)
            _wait(lambda: self._answers(node), f"libvirtd of {node}")

    def _render_host(self) -> str:
        if self._images is None:
            return "exec "
        reaper = f"{sys.executable} {Path(__file__).with_name('reaper.py')}"
        return _HOST.format(images=self._images, state=" ".join(STATE), verdict=CACHE, reaper=reaper)

    def _answers(self, node: str) -> bool:
        # Before the node has its own /run/libvirt, that of the lab would answer.
        line = "test -e /run/libvirt/libvirtd.pid && virsh --connect=qemu:///system uri"
        return self._enter(node, "sh", "-c", line).returncode == 0

    def on(self, node: str, *words: str) -> str:
        """The output of a program that is run on a node, as a person who is logged in there."""
        done = self._enter(node, *words)
        assert done.returncode == 0, (node, words, done.stdout, done.stderr)
        return done.stdout

    def _enter(self, node: str, *words: str) -> subprocess.CompletedProcess[str]:
        spaces = ("--mount", "--net", "--uts", "--pid")
        return subprocess.run(
            ["nsenter", f"--target={self._first(node)}", *spaces, "--", *words],
            capture_output=True, text=True, env=self.environment, timeout=_LIMIT,
        )  # fmt: skip

    def cut(self, node: str) -> None:
        """The node goes on, without a network and without the shared folder."""
        self.disconnect(node)
        self.hide_spool(node)

    def heal(self, node: str) -> None:
        self.show_spool(node)
        self.connect(node)

    def disconnect(self, node: str) -> None:
        """The node goes on, and its controller does not reach it. It has the shared folder."""
        self._in("ctl", "link", "set", node, "down")

    def connect(self, node: str) -> None:
        self._in("ctl", "link", "set", node, "up")

    def hide_spool(self, node: str) -> None:
        """The node sees another file system in place of the shared folder, on which it cannot write."""
        self._mount(node, "mount", "-t", "tmpfs", "-o", "ro", "none")

    def show_spool(self, node: str) -> None:
        self._mount(node, "umount")

    def _mount(self, node: str, *words: str) -> None:
        _run("nsenter", f"--mount=/proc/{self._first(node)}/ns/mnt", *words, str(self.shared))

    def _first(self, node: str) -> str:
        """The first process of a node: the child of `unshare`, in the namespaces of the node."""
        [first] = self._find_first(node)
        return first

    def _find_first(self, node: str) -> list[str]:
        pid = self._processes[node].pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def kill_node(self, node: str) -> None:
        """The node dies, with all that runs on it."""
        process = self._processes.pop(node)
        process.kill()
        process.wait(10)

    def states(self) -> dict[str, str]:
        found = self.call("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).split()
        return dict(zip(found[::2], found[1::2], strict=True))

    def call(self, *words: str, check: bool = True) -> str:
        """The output of a program of Slurm."""
        done = subprocess.run(
            [*self.inside(), *words], capture_output=True, text=True, env=self.environment, timeout=_LIMIT
        )
        assert not check or done.returncode == 0, (words, done.stderr)
        return done.stdout

    def stop(self) -> None:
        for process in (*reversed(self._processes.values()), *self._spaces.values()):
            process.kill()
            process.wait(10)

    def _start(self, name: str, words: list[str]) -> None:
        with (self.place / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                preexec_fn=default_signals,
            )

    def _in(self, node: str, *words: str) -> None:
        _run(*self.inside(node), "ip", *words)


def default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=_LIMIT)
    assert done.returncode == 0, (words, done.stderr)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not begin"
        time.sleep(0.2)


@contextmanager
def running_cluster(place: Path, **settings: Any) -> Iterator[Cluster]:
    made = Cluster(place, **settings)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def list_host(cluster: Cluster, node: str) -> dict[str, list[str]]:
    """What a run could leave on a node, each sorted: asked of the node with its own tools and not with the program's."""

    def lines(*words: str) -> list[str]:
        return sorted(line.strip() for line in cluster.on(node, *words).splitlines() if line.strip())

    cache = cluster.local / "0"
    tables = json.loads(cluster.on(node, "nft", "--json", "list", "tables") or "{}").get("nftables", [])
    folders = " ".join(str(cache / name) for name in ("instances", "workspaces", "ssh"))
    return {
        "domains": lines("virsh", "--quiet", "--connect=qemu:///system", "list", "--all", "--name"),
        "links": sorted(link["ifname"] for link in json.loads(cluster.on(node, "ip", "--json", "link"))),
        "tables": sorted(one["table"]["name"] for one in tables if "table" in one),
        "namespaces": lines("ls", "/run/netns"),
        # That of the spool is how a node is cut off.
        "mounts": [one for one in lines("findmnt", "-rno", "TARGET") if one != str(cluster.shared)],
        # A step of a job stays until the controller knows of its end.
        "processes": [one for one in lines("ps", "-e", "-o", "args=") if not one.startswith(("ps -e", "slurmstepd: "))],
        # A folder that the first run has yet to make has nothing in it.
        "files": lines("sh", "-c", f"find {folders} -mindepth 1 2>/dev/null || true"),
        "runtime files": lines(
            "sh",
            "-c",
            "find /run/libvirt /run/ktrdr-vm /var/lib/libvirt -mindepth 1 -name '*ktrdr*' 2>/dev/null || true",
        ),
    }
