"""A folder of the host in the guest. The bind that is exported, and not the guest, decides what the guest may do with
it.

The virtiofs device is removed with the domain, which follows: the guest need not release it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from ktrdr_vm.errors import GuestError, HostError, KtrdrError, ProvisionError, keep_end
from ktrdr_vm.host.beneath import Place, find_place, open_folder
from ktrdr_vm.host.mounts import bind_readonly, find_mounts, unmount
from ktrdr_vm.host.rights import find_open, set_rights
from ktrdr_vm.host.running import end_process, find_processes
from ktrdr_vm.host.virtiofsd import serve
from ktrdr_vm.instance.resources.base import Blueprint, Resource, Target
from ktrdr_vm.plan.domain_xml import element, to_text
from ktrdr_vm.profile.model import Mount as MountEntry
from ktrdr_vm.profile.personal import find_personal
from ktrdr_vm.users import in_user_namespace

GUEST_LIMIT = 60.0
# Seconds. The guest must not delay the expiry of a loan.
CUT_LIMIT = 5.0
# Folders that are searched for a repository before a mount is made. A source with more of them is refused.
MAX_FOLDERS = 100_000
# By the tag: the caller need not know where it was mounted.
_UNMOUNT = """while read -r source target _; do
  [ "$source" = "$TAG" ] || continue
  target=$(printf '%b' "$target")
  umount -- "$target" || umount -l -- "$target"
done < /proc/mounts
"""


class Mount(Resource):
    kind = "mount"
    needs_guest = True

    def __init__(self, target: Target, blueprint: Blueprint | None, mark: str, entry: MountEntry | None) -> None:
        """`mark` is its number in the profile, or the id of the escalation that it is the loan of; `entry` is None
        where it is only removed."""
        super().__init__(target, blueprint)
        self.mark = mark
        self._wanted = entry

    @property
    def planned(self) -> bool:
        return self._wanted is not None

    @property
    def key(self) -> str:
        return f"mount:{self.mark}"

    @property
    def name(self) -> str:
        return str(self._place)

    @property
    def _place(self) -> Path:
        return self.target.paths.mounts / self.mark

    @property
    def _entry(self) -> MountEntry:
        assert self._wanted is not None, "a mount opened for removal cannot be made"
        return self._wanted

    @property
    def _tag(self) -> str:
        return f"mount{self.mark}"

    @property
    def _socket(self) -> Path:
        """The socket in a world, where virtiofsd serves it: beneath the world's own /run, since names of sockets are
        short."""
        return Path("/run/ktrdr-vm", f"{self.target.identity.tap}-{self.mark}.virtiofs")

    def exists(self) -> bool:
        return bool(find_mounts(self._place)) or self._place.exists() or self._socket.exists()

    def create(self) -> None:
        if not self._entry.readonly:
            raise HostError(
                f"{self._entry.source} is requested as writable, and this version cannot keep root's files out of"
                " a writable mount",
                where=self.target.identity.instance_id,
                hint="make it readonly, and return results as artifacts or commits",
            )
        # Closed above the bind: a user who may not enter the source's own folders must not reach it through the bind.
        self.target.paths.mounts.mkdir(mode=0o700, exist_ok=True)
        set_rights(self.target.paths.mounts, self.target.paths.home)
        self._place.mkdir(mode=0o700, exist_ok=True)
        if not find_mounts(self._place):
            place = _resolve(self._entry, Path(self.blueprint.plan.facts.workspace), self.blueprint.mount_roots)
            with _open_source(place) as source:
                _refuse_repositories(source, self._entry.source)
                bind_readonly(source, self._place)
        if not self._attached():
            if in_user_namespace():
                serve(self._place, self._socket)
            self.target.libvirt.attach(self.target.identity.domain, to_text(self._device()))
        # The options in the guest are a convenience; the bind on the host enforces them.
        done = self.blueprint.connect().run(
            'mkdir -p -- "$TARGET" && { mountpoint -q -- "$TARGET" || mount -t virtiofs -o ro,nosuid,nodev "$TAG"'
            ' "$TARGET"; }',
            environment={"TARGET": self._entry.target, "TAG": self._tag},
            become=True,
            timeout=GUEST_LIMIT,
        )
        if done.exit_code != 0:
            raise ProvisionError(
                f"{self._entry.target} could not be mounted in the guest:"
                f" {keep_end(done.stderr.decode('utf-8', 'replace').strip(), 300)}",
                where=self.target.identity.instance_id,
                hint="the target must be a folder or must not exist, and the guest's kernel must support virtiofs",
            )

    def verify(self) -> list[str]:
        mounts = find_mounts(self._place)
        if not mounts:
            return ["the bind is gone"]
        missing = {"ro", "nosuid", "nodev"} - mounts[-1].options
        differences = [f"the bind is not {option}" for option in sorted(missing)]
        differences += [f"others may open {one}" for one in find_open(self.target.paths.home, self.target.paths.mounts)]
        if not self._attached():
            differences.append("it is not attached to the domain")
        return differences

    def detach(self, *, limit: float = GUEST_LIMIT) -> None:
        """Remove it from the running guest and from the domain, then from the host. ProvisionError when the guest keeps
        it for `limit` seconds."""
        if self._attached():
            self._ask_guest(limit)
            self.target.libvirt.detach(self.target.identity.domain, to_text(self._device()))
            end = time.monotonic() + limit
            while self._attached():
                if time.monotonic() > end:
                    raise ProvisionError(
                        f"the guest does not release {self._tag}",
                        where=self.target.identity.instance_id,
                        hint="end what uses it in the guest, then try again",
                    )
                time.sleep(0.05)
        self.remove()

    def _ask_guest(self, limit: float) -> None:
        # Lazily: a process with an open file on it loses the file, as when a network fails.
        with contextlib.suppress(GuestError):
            self.blueprint.connect().run(_UNMOUNT, environment={"TAG": self._tag}, become=True, timeout=limit)

    def cut(self, *, limit: float = CUT_LIMIT) -> None:
        """Remove it whether or not the guest releases it, by ending the process that serves it. The guest is asked
        first, for `limit` seconds at most."""
        with contextlib.suppress(KtrdrError):
            self.detach(limit=limit)
            return
        for pid in self._servers():
            end_process(pid)
        self.remove()

    def _servers(self) -> list[int]:
        """The virtiofsd processes that serve this folder, and no other: libvirt starts one for each mount."""
        shown = f"source={self._place}".encode()
        return find_processes(
            lambda words: (
                b"virtiofsd" in words[0] and any(word == shown or word.startswith(shown + b",") for word in words)
            )
        )

    def remove(self) -> None:
        if in_user_namespace():
            for pid in self._servers():
                end_process(pid)
            self._socket.unlink(missing_ok=True)
        while find_mounts(self._place):
            unmount(self._place)
        if self._place.exists():
            self._place.rmdir()
        if self.target.paths.mounts.exists() and not any(self.target.paths.mounts.iterdir()):
            self.target.paths.mounts.rmdir()

    def _device(self) -> ElementTree.Element:
        return element(
            "filesystem",
            "",
            element("driver", type="virtiofs"),
            (
                element("source", socket=str(self._socket))
                if in_user_namespace()
                else element("source", dir=str(self._place))
            ),
            element("target", dir=self._tag),
            type="mount",
            accessmode="passthrough",
        )

    def _attached(self) -> bool:
        domain = self.target.identity.domain
        if self.target.libvirt.find(domain) is None:
            return False
        live = ElementTree.fromstring(self.target.libvirt.describe(domain))  # noqa: S314 - libvirt's own
        return any(target.get("dir") == self._tag for target in live.iterfind("./devices/filesystem/target"))

    def by_hand(self) -> str:
        return f"umount -l {self._place}; rmdir {self._place}"


def require_source(entry: MountEntry, workspace: Path, roots: tuple[str, ...]) -> None:
    """HostError unless the folder exists and may be shared. Checked before a VM is created that would lack it."""
    with _open_source(_resolve(entry, workspace, roots)):
        pass


@contextlib.contextmanager
def _open_source(place: Place) -> Iterator[int]:
    opened = contextlib.ExitStack()
    try:
        folder = opened.enter_context(open_folder(place))
    except OSError as error:
        raise HostError(
            f"{'/'.join(place.parts) or '.'} is not a folder that can be shared: {error.strerror}",
            where=str(place.root),
            hint="a mount's source is a real folder, without a link on the way",
        ) from None
    with opened:
        yield folder


def _resolve(entry: MountEntry, workspace: Path, roots: tuple[str, ...]) -> Place:
    """The source beneath the root that allows it."""
    source, allowed = workspace / entry.source, [workspace, *map(Path, roots)]
    if any(source.is_relative_to(root) for root in allowed) and ".." not in source.parts:
        return find_place(source, allowed)
    raise HostError(
        f"{source} is beneath no root that the owner lists", where=str(source), hint="see the owner's policy"
    )


def _refuse_repositories(source: int, shown: str) -> None:
    """HostError for a repository or a personal folder anywhere beneath. A .git holds every branch, and its
    configuration remotes with passwords."""
    # The descriptor names a folder only and cannot list it; this one opens the same folder for reading.
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    try:
        for number, (path, folders, files, _) in enumerate(os.fwalk(".", dir_fd=folder, follow_symlinks=False)):
            if personal := find_personal((*folders, *files), inside=True):
                raise HostError(
                    f"{shown} holds a person's own place at {path}/{personal}, which never enters a sandbox",
                    where="mounts",
                    hint="mount the folders that are needed",
                )
            if ".git" in folders or ".git" in files:
                raise HostError(
                    f"{shown} holds a repository at {path}, and a .git is never mounted",
                    where="mounts",
                    hint="mount the folders that are needed; the workspace itself is copied in without its .git",
                )
            if number >= MAX_FOLDERS:
                raise HostError(
                    f"{shown} holds more than {MAX_FOLDERS} folders", where="mounts", hint="mount a smaller folder"
                )
    finally:
        os.close(folder)
