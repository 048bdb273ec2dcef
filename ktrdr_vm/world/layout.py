"""Where a world is found: a folder of the person's for each state directory, with the record of the process that holds
it."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from ktrdr_vm.errors import HostError
from ktrdr_vm.users import in_user_namespace

# In the world: /run is its own, and there is nothing of the host's.
INSIDE = Path("/run/ktrdr-vm")
DAEMONS = INSIDE / "daemons.mnt"
OUTSIDE = INSIDE / "outside"
_ERROR = "world: "


def make_entry(uid: int) -> tuple[str, ...]:
    """The words before a program that runs as a sub-id and sees what the daemons see; none outside of a world."""
    if not in_user_namespace():
        return ()
    ids, rights = (
        (f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
        ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
    )
    return ("nsenter", f"--mount={DAEMONS}", "--", "setpriv", *ids, *rights, "--pdeathsig=KILL", "--")


def write_error(error: Exception) -> None:
    """Write why there is no world into its log, on standard error; `read_errors` finds it among the words of
    programs."""
    os.write(2, f"{_ERROR}{error}\n".encode("utf-8", "backslashreplace"))


def read_errors(log: bytes) -> list[str]:
    lines = log.decode("utf-8", "replace").splitlines()
    return [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]


@dataclass(frozen=True)
class Record:
    """The world's root, and the namespaces by which processes of the world are known; daemons and QEMU have another one
    of mounts."""

    pid: int
    user_namespace: int
    mount_namespace: int


@dataclass(frozen=True)
class Layout:
    """The folder of one world. `home` is the state directory that it serves."""

    folder: Path
    home: Path

    @property
    def record(self) -> Path:
        return self.folder / "world.json"

    @property
    def start_lock(self) -> Path:
        """Held while a world is searched and made."""
        return self.folder / "start.lock"

    @property
    def use_lock(self) -> Path:
        """Shared by each command in the world. The world ends when it can have it alone."""
        return self.folder / "use.lock"

    @property
    def log(self) -> Path:
        return self.folder / "world.log"

    def read_record(self) -> Record | None:
        try:
            return Record(**json.loads(self.record.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write_record(self, record: Record) -> None:
        fresh = self.record.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(record)))
        fresh.rename(self.record)


def find_layout(home: Path) -> Layout:
    """The layout for a state directory. HostError if the folder is not the person's alone."""
    # Imported on use: the guard starts HAProxy by `make_entry`, and needs no layout.
    import hashlib

    named = os.environ.get("XDG_RUNTIME_DIR", "")
    # A relative path would be another folder for each current folder, and the specification has it ignored.
    base = Path(named if named.startswith("/") else f"/tmp/ktrdr-vm-{os.getuid()}")
    for folder in (base, base / "ktrdr-vm"):
        try:
            # What another user put there, such as a link to nothing, is found below.
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            facts = folder.lstat()
        except OSError as error:
            # After `su`, the variable names the folder of a session that does not exist.
            raise HostError(
                f"the folder of this user's world cannot be created: {error.strerror}",
                where=str(folder),
                hint="unset XDG_RUNTIME_DIR, or set it to a folder of mode 0700 that belongs to you",
            ) from None
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            raise HostError(
                f"{folder} is not a folder of mode 0700 that belongs to you",
                where=str(folder),
                hint="set XDG_RUNTIME_DIR to one that is, or remove it if it is yours",
            )
    own = base / "ktrdr-vm" / hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    own.mkdir(mode=0o700, exist_ok=True)
    return Layout(own, home)
