"""The functions of the command line, for programs: `from ktrdr_vm import Instance, apply, make_plan`.

Errors are those of `ktrdr_vm.errors`, with message, place and hint. Creating, entering and destroying an instance
requires root or `enter_world`; `make_plan` requires neither.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ktrdr_vm.errors import UsageError
from ktrdr_vm.escalation.store import EscalationStore
from ktrdr_vm.evidence import reader
from ktrdr_vm.evidence.run_directory import RunDirectory, make_run_id
from ktrdr_vm.gates.load import load_playbook
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.guest.push import Pushed
from ktrdr_vm.host.clock import now
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.owner import forbid_cores
from ktrdr_vm.host.paths import find_home
from ktrdr_vm.host.runs import create_run, find_run
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.references import find_playbook
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.inputs.trusted import require_accepted
from ktrdr_vm.instance.instance import Instance as HostInstance
from ktrdr_vm.instance.instance import require_root
from ktrdr_vm.instance.inventory import find_instances
from ktrdr_vm.instance.secret_sources import read_source
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.report.mask import make_mask
from ktrdr_vm.report.model import GateResult, RunReport
from ktrdr_vm.run.gates import run_gates
from ktrdr_vm.run.listener import Keep, Listener, Options
from ktrdr_vm.run.mask import find_mask
from ktrdr_vm.run.provision import RunContext
from ktrdr_vm.run.push import push_into
from ktrdr_vm.run.recorder import Recorder
from ktrdr_vm.run.run import Run
from ktrdr_vm.run.vm import Stage
from ktrdr_vm.world.own import enter_own_world

MAX_OUTPUT = 10 * 1024 * 1024


@dataclass(frozen=True)
class Result:
    """The result of a command in an instance. Output is masked; `truncated` is True if it was cut at 10 MiB."""

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool


def enter_world() -> None:
    """Without root: let this process run in the world of its user, as every command does. As root it has no effect.

    To be called before the program starts threads: Linux does not let a process with several change its user namespace.
    Afterwards the process is root of that world, which is its user outside. HostError if this host cannot have a world.
    """
    if os.geteuid() != 0:
        enter_own_world()


def make_plan(profile: str | Path, *, workspace: str | Path = ".", instance_id: str | None = None) -> Plan:
    """The plan of `apply`: `.digest`, `.render()`, `.to_json()`. Changes nothing. DocumentError holds all errors of the
    profile."""
    return gather(Path(profile), home=find_home(), workspace=Path(workspace), instance_id=instance_id).plan


def apply(
    profile: str | Path,
    *,
    workspace: str | Path = ".",
    instance_id: str | None = None,
    gates: Sequence[str] = (),
    keep: Keep = "never",
    cold: bool = False,
    accept_changes: bool = False,
    listener: Listener | None = None,
) -> RunReport:
    """One whole run, as `ktrdr-vm apply`. A failed gate raises nothing: check `.outcome` and `.exit_code`.

    UsageError if the profile allows destinations of secrets that the trusted branch does not, unless `accept_changes`
    is set.
    """
    require_root()
    forbid_cores()
    home = find_home()
    gathered = gather(Path(profile), home=home, workspace=Path(workspace), instance_id=instance_id, gates=tuple(gates))
    if not accept_changes:
        require_accepted(gathered.beyond, str(profile))
    return Run(gathered, home, Libvirt(), Options(keep=keep, cold=cold), listener or Listener()).execute()


def list_instances() -> list[dict[str, Any]]:
    """The instances of this host, as `ktrdr-vm list --json`."""
    return [found.to_json() for found in find_instances(find_home(), Libvirt())]


def read_report(instance_id: str, run_id: str = "latest") -> RunReport:
    """The report of a run, by default the newest. UsageError if there is none."""
    name = parse_instance_id(instance_id).instance_id
    return reader.read_report(find_run(find_home(), name, run_id))


class Instance:
    """A sandbox for a `with` block: created on entry, destroyed on exit. ResidueError if a resource is left.

    >>> with Instance("profile.yaml", instance_id="demo") as instance:  # doctest: +SKIP
    ...     instance.exec(["uname", "-r"]).stdout
    """

    def __init__(
        self,
        profile: str | Path,
        *,
        workspace: str | Path = ".",
        instance_id: str | None = None,
        cold: bool = False,
        accept_changes: bool = False,
        listener: Listener | None = None,
    ) -> None:
        require_root()
        forbid_cores()
        self._home = find_home()
        self._gathered = gather(Path(profile), home=self._home, workspace=Path(workspace), instance_id=instance_id)
        if not accept_changes:
            require_accepted(self._gathered.beyond, str(profile))
        self._cold = cold
        self._listener = listener or Listener()
        self._held = contextlib.ExitStack()
        self._stage: Stage | None = None
        self._mask: Callable[[str], str] = str

    @property
    def instance_id(self) -> str:
        return self._gathered.plan.identity.instance_id

    @property
    def plan(self) -> Plan:
        return self._gathered.plan

    def __enter__(self) -> Instance:
        plan, run_id = self._gathered.plan, make_run_id()
        if plan.profile.mode != "sandbox":
            raise UsageError(
                "an interactive profile cannot be used in a `with` block",
                where="Instance",
                hint="use `apply` for an interactive profile",
            )
        secrets = {secret.name: read_source(secret) for secret in plan.profile.secrets}
        self._mask = make_mask(secrets.values())
        self._home.create()
        context = RunContext(run_id, now(), secrets, self._mask)
        stage = Stage(self._gathered, self._home, Libvirt(), context, Options(cold=self._cold), name="base")
        with contextlib.ExitStack() as held:
            held.enter_context(stage.instance.locked())
            # Without a run directory there is no `__exit__`, and the lock must not stay.
            self._recorder = Recorder(
                RunDirectory(
                    create_run(self._home, self.instance_id, run_id), self.instance_id, plan.facts.owner, self._mask
                ),
                self._listener,
            )
            self._held = held.pop_all()
        self._stage = stage
        try:
            stage.provision(self._recorder)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        with self._held:
            if self._stage is None:
                return
            stage, self._stage = self._stage, None
            with contextlib.suppress(Exception):  # errors in the evidence must not prevent the teardown
                stage.harvest.keep_evidence(self._recorder)
            _, failed = stage.destroy(self._recorder)
            self._recorder.directory.close()
            if failed is not None:
                raise failed

    def exec(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float = 3600,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command, or a line for /bin/sh, as the user of the guest in the workspace. GuestTimeout after `timeout`
        seconds."""
        _require_words(command)
        stage = self._require()
        profile = stage.plan.profile
        done = stage.connect().run(
            command,
            timeout=timeout,
            stdin=stdin,
            environment={**stage.loaded.environment(), **(environment or {})},
            chdir=profile.workspace.target if profile.workspace else None,
            max_output=MAX_OUTPUT,
        )
        return _result(done, self._mask)

    def gate(self, *names: str) -> tuple[GateResult, ...]:
        """Run gates by name or path, in order, until one does not pass."""
        root = Path(self.plan.facts.workspace)
        playbooks = [load_playbook(find_playbook(name, root, trusted=True), beneath=root) for name in names]
        return self._require().run_gates(playbooks, self._recorder)

    def upload(self, source: str | Path, destination: str, *, mode: int = 0o644) -> None:
        """Copy one file into the guest."""
        with Path(source).open("rb") as file:
            self._require().connect().upload(file, destination, mode=mode)

    def download(self, path: str, destination: str | Path, *, max_bytes: int = 1 << 30) -> int:
        """The bytes of a regular file in the guest. After an error the destination is as it was before."""
        guest, wanted = self._require().connect(), Path(destination)
        if wanted.exists() and not wanted.is_file():
            with wanted.open("wb") as file:
                return guest.download(path, file, max_bytes=max_bytes)
        part = wanted.with_name(f".{wanted.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as file:
                size = guest.download(path, file, max_bytes=max_bytes)
            # A link stays, and what it leads to is replaced.
            part.replace(wanted.resolve() if wanted.is_symlink() else wanted)
        finally:
            part.unlink(missing_ok=True)
        return size

    def escalations(self) -> list[dict[str, Any]]:
        """Its escalations and their answers."""
        return [
            one.to_json()
            for one in EscalationStore(self._require().instance.paths.escalations, self.instance_id).list()
        ]

    def _require(self) -> Stage:
        if self._stage is None:
            raise UsageError(
                "the instance does not exist", where=self.instance_id, hint="use it inside of its `with` block"
            )
        return self._stage


class LivingInstance:
    """An existing instance: kept, interactive, or of an active run. It is not destroyed on exit."""

    def __init__(self, instance_id: str) -> None:
        forbid_cores()
        self._loaded = HostInstance(find_home(), parse_instance_id(instance_id), Libvirt()).load()
        self._loaded.target.refuse_suspended()

    def __enter__(self) -> LivingInstance:
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.close()

    def exec(
        self, command: Sequence[str] | str, *, timeout: float = 3600, stdin: bytes = b"", expect: str = ""
    ) -> Result:
        """As `Instance.exec`, in the user's home. UsageError if `expect` is set and not its revision."""
        _require_words(command)
        self._loaded.require_revision(expect)
        mask = find_mask(self._loaded, warnings.warn)
        done = self._loaded.connect().run(
            command, timeout=timeout, stdin=stdin, environment=self._loaded.environment(), max_output=MAX_OUTPUT
        )
        return _result(done, mask)

    def find_revision(self) -> str:
        """Its incarnation, plan and grants now, as one text."""
        return self._loaded.guard.find_revision()

    def gate(self, name: str, *, workspace: str | Path = ".", trusted: bool = True, expect: str = "") -> GateResult:
        """Run one gate under the instance's lock. BusyError when a run holds it. Without `trusted` only of the
        workspace, or shipped.

        UsageError if `expect` is set and not the revision of the instance.
        """
        [result] = run_gates(self._loaded, [name], Path(workspace).resolve(), trusted=trusted, expect=expect)
        return result

    def push(self, ref: str = "HEAD", *, branch: str = "", comments: str = "", expect: str = "") -> Pushed:
        """Push a commit of the host and comments into its repository, by default to a new branch. An empty `ref` pushes
        comments alone.

        UsageError, with nothing changed, if the branch cannot be moved forward or is checked out with changes.
        """
        return push_into(self._loaded, ref, branch=branch, comments=comments.encode(), expect=expect)

    def escalations(self) -> list[dict[str, Any]]:
        """What was asked for in it, and the answers."""
        return [one.to_json() for one in self._loaded.escalations.list()]


def _require_words(command: Sequence[str] | str) -> None:
    """UsageError for no command at all: a shell would answer that with success."""
    if not command or not (command if isinstance(command, str) else command[0]).strip():
        raise UsageError("no command was given", where="exec", hint="give a list of words, or a line for /bin/sh")


def _result(done: GuestResult, mask: Callable[[str], str]) -> Result:
    out, err = (mask(data.decode("utf-8", "replace")) for data in (done.stdout, done.stderr))
    return Result(done.exit_code, out, err, done.truncated)
