"""The journal of an instance and its lock: each resource is recorded on disk before it is created.

The file is replaced atomically, so that a crash leaves the old state or the new one.
The lock is an flock, which ends with its process; an existing lock file means nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import BusyError, HostError, ProvisionError
from ktrdr_vm.host.clock import boottime, has_passed, later, read_boot_id, seconds_since
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import is_instance_id

# Version 2 added suspended instances, version 3 the expiry by the clock of the boot. Earlier versions are read
# unchanged: all instances of 1 are `awake`, and those of 1 and 2 end by the wall clock.
SCHEMA_VERSION = 3
_READABLE = (1, 2, 3)
# Attempts, ten milliseconds apart, before the lock counts as held.
_PATIENCE = 5


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Converts an OSError in the block to a HostError with its path."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"cannot be created: {error.strerror or error}",
            where=str(error.filename or where),
            hint="free disk space, or check the permissions of this folder and of those above it",
        ) from error


@dataclass
class Journal:
    """The recorded state of one instance. Every change is on disk before the method returns."""

    path: Path
    instance_id: str
    mode: str = "sandbox"
    plan_digest: str = ""
    created_at: str = ""
    run_id: str = ""
    kept: bool = False
    state: str = "awake"
    """`awake` (running), suspending, suspended or resuming; recorded before the step begins."""
    expires_at: str = ""
    """Its expiry, UTC; empty without one. Within the boot `expires_boot`, `expires_second` counts instead."""
    expires_boot: str = ""
    expires_second: float = 0.0
    slot: int = -1
    genid: str = ""
    source: str = ""
    """The snapshot that the disk was copied from, as ID@NAME; empty otherwise."""
    template: str = ""
    """The key of the template that the instance was forked from; empty after a cold boot."""
    job: str = ""
    """The job of a scheduler that created the instance, as `slurm:ID`; empty outside of one."""
    resources: dict[str, str] = field(default_factory=dict)
    """Resource key to `intended` or `present`, in the order of creation."""
    plan: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        content = {
            "schema_version": SCHEMA_VERSION,
            **{key: value for key, value in asdict(self).items() if key != "path"},
        }
        write_durably(self.path, (json.dumps(content, indent=2) + "\n").encode())

    def enter(self, state: str) -> None:
        """Record that the instance enters, or is in, another state."""
        self.state = state
        self.save()

    def keep(self) -> None:
        """Note that the instance stays when its run ends, until somebody destroys it."""
        self.kept = True
        self.save()

    def live_for(self, seconds: float) -> None:
        """Set the time to live in seconds from now; 0 is unlimited. Saved with the next change."""
        self.expires_at, self.expires_boot, self.expires_second = "", "", 0.0
        if seconds:
            self.expires_at, self.expires_boot, self.expires_second = (
                later(seconds),
                read_boot_id(),
                boottime() + seconds,
            )

    @property
    def image(self) -> str:
        """The digest of the image of its plan. ValueError if the plan has none, which no version wrote."""
        try:
            return str(self.plan["facts"]["image"]["digest"])
        except (KeyError, TypeError):
            raise ValueError("the plan names no image") from None

    @property
    def expired(self) -> bool:
        """True if its time to live has ended."""
        return bool(self.expires_at) and has_passed(self.expires_at, self.expires_boot, self.expires_second)

    def intend(self, key: str) -> None:
        if self.resources.get(key) != "intended":
            self.resources[key] = "intended"
            self.save()

    def confirm(self, key: str) -> None:
        self.resources[key] = "present"
        self.save()

    def strike(self, key: str) -> None:
        if self.resources.pop(key, None) is not None:
            self.save()


def read_journal(path: Path) -> Journal | None:
    """The journal, or None if there is none. HostError if it cannot be read."""
    try:
        # Without waiting for whoever would write into a pipe in its place.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            raw = file.read() or b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(
            f"cannot read the journal: {error.strerror}",
            where=str(path),
            hint="run as the owner of the state directory",
        ) from error
    try:
        content = json.loads(raw)
        version = content.pop("schema_version")
        if version not in _READABLE:
            raise HostError(
                f"the journal has version {version}, and this program supports {SCHEMA_VERSION}",
                where=str(path),
                hint="destroy the instance with the version of ktrdr-vm that wrote it, or with a newer one",
            )
        journal = Journal(path=path, **content)
        wanted = Journal(path=path, instance_id="")
        for name, value in content.items():
            if type(value) is not type(getattr(wanted, name)):
                raise TypeError(f"{name} has the wrong type")
        if journal.expires_at:
            seconds_since(journal.expires_at)
        return journal
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProvisionError(
            f"the journal is damaged: {error}",
            where=str(path),
            hint="`ktrdr-vm gc` searches the host for the resources of the instance and removes them",
        ) from None


@contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock at `path`. Without `wait`, a BusyError names its holder. The file is removed with the lock."""
    patience = _PATIENCE
    while True:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot open the lock: {error.strerror}",
                where=str(path),
                hint="run as the owner of the state directory",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            patience -= 1
            if patience > 0:
                # `list` and `status` hold the lock for an instant to check it.
                time.sleep(0.01)
                continue
            raise BusyError(
                f"{what} is locked by another run ({holder or 'starting'})",
                where=str(path),
                hint="wait for it to end, use another --instance-id, or end it with `ktrdr-vm destroy --force`",
            ) from None
        # The previous holder may have removed the file meanwhile; then this lock is on a deleted file.
        if _same_file(descriptor, path):
            break
        os.close(descriptor)
    try:
        with contextlib.suppress(OSError):  # the holder is recorded for messages only; a full disk does not matter
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """True if a running process holds this lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise HostError(
            f"cannot check the lock: {error.strerror}", where=str(path), hint="run as the owner of the state directory"
        ) from error
    try:
        # Shared, so that concurrent checks do not block each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def end_holder(path: Path, limit: float = 300.0) -> None:
    """Ask the process that holds this lock to end in good order, and wait for it. BusyError if it holds it after
    `limit` seconds."""
    end = time.monotonic() + limit
    asked = 0
    while is_locked(path):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text().removeprefix("pid "))
            if pid not in (asked, os.getpid()) and b"ktrdr" in Path("/proc", str(pid), "cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
                asked = pid
        if time.monotonic() > end:
            raise BusyError(
                f"the run of process {asked or 'unknown'} was asked to end and has not ended within {limit:g} s",
                where=str(path),
                hint="`kill -KILL` ends that process, and then `ktrdr-vm destroy` removes what it leaves",
            )
        time.sleep(0.1)


def remove_dead_locks(folder: Path) -> None:
    """Remove the lock files that no process holds, which a process leaves that was killed before it created
    anything."""
    for path in folder.glob("*.lock"):
        with contextlib.suppress(BusyError, HostError), locked(path, path.name):
            pass


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        ours, theirs = os.fstat(descriptor), path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def list_journals(home: Home) -> list[Journal]:
    """Every readable journal of a home, by instance_id. Damaged ones and those of a newer version are skipped."""
    found = []
    for directory in list_directories(home):
        with contextlib.suppress(ProvisionError, HostError):
            journal = read_journal(directory / "journal.json")
            if journal is not None:
                found.append(journal)
    return found


def list_unreadable(home: Home) -> list[str]:
    """The instances that have a journal which this program cannot read, so that nobody can tell what they use."""
    found = []
    for directory in list_directories(home):
        try:
            journal = read_journal(directory / "journal.json")
            if journal is not None:
                _ = journal.image
        except (ProvisionError, HostError, ValueError):
            found.append(directory.name)
    return found


def list_directories(home: Home) -> list[Path]:
    """The folders of instances. Folders whose name is not an instance_id are ignored."""
    try:
        return sorted(path for path in home.instances.iterdir() if is_instance_id(path.name) and path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise HostError(
            f"cannot be listed: {error.strerror}",
            where=str(home.instances),
            hint="run as the owner of the state directory",
        ) from None
