"""A Slurm cluster without systemd: a controller and two nodes, each node with network, UTS, mount and process
namespaces of its own.

The folder `shared` is on both nodes, `local` is another one on each. A node that is cut off can neither reach the
controller nor write to the shared folder.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
KillWait=10
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


class Cluster:
    """`lost` is the time in seconds after which a node that is silent is DOWN; `slots` are the VMs of each node.

    With `shares`, users have fair shares, which slurmdbd keeps in a MariaDB of the cluster's own.
    """

    def __init__(
        self, place: Path, *, lost: int = 20, slots: int = 2, cpus: int = 8, shares: tuple[str, ...] = ()
    ) -> None:
        self._shares = shares
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
            _CONFIGURATION.format(place=place, lost=lost, slots=slots, cpus=cpus)
            + (_SHARES.format(place=place) if shares else "")
        )
        (place / "gres.conf").write_text(f"Name=kvm Count={slots}\n")
        (place / "cgroup.conf").write_text("CgroupAutomount=no\n")
        key = place / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

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
        mounts = f"mount --bind shared shared && mount --bind local-{node} local"
        line = f"hostname {node} && {quiet} && {mounts} && exec slurmd -D -N {node}"
        self._start(node, [*self.inside(node), *apart, "sh", "-c", f"cd {self.place} && {line}"])

    def cut(self, node: str) -> None:
        """The node goes on, without a network and without the shared folder."""
        self._in("ctl", "link", "set", node, "down")
        self.hide_spool(node)

    def heal(self, node: str) -> None:
        self.show_spool(node)
        self._in("ctl", "link", "set", node, "up")

    def hide_spool(self, node: str) -> None:
        """The node sees another file system in place of the shared folder, on which it cannot write."""
        self._mount(node, "mount", "-t", "tmpfs", "-o", "ro", "none")

    def show_spool(self, node: str) -> None:
        self._mount(node, "umount")

    def _mount(self, node: str, *words: str) -> None:
        # The process of slurmd is the child of `unshare`, in the namespaces of the node.
        [pid] = Path(f"/proc/{self._processes[node].pid}/task/{self._processes[node].pid}/children").read_text().split()
        _run("nsenter", f"--mount=/proc/{pid}/ns/mnt", *words, str(self.shared))

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
