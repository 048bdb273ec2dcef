"""A root file system of a Debian release with some packages, and nothing of this host but its kernel and its network."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ktrdr_vm.images.apt import read_apt_host

RELEASES = ("bookworm", "trixie")
_CONTAINER = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
# The kernel refuses user namespaces in a chroot, so the root is entered as container runtimes do.
_ENTER = """\
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
for folder in sys dev; do mount --rbind "/$folder" "$folder"; done
mount -t tmpfs -o mode=755 run run
mount -t tmpfs tmp tmp
cp --dereference /etc/resolv.conf etc/resolv.conf
mkdir -p .old
pivot_root . .old
umount -l .old
exec sh -c "$2"
"""


@dataclass(frozen=True)
class CleanRoot:
    """One of `release` at `place`."""

    release: str
    place: Path

    def run(self, script: str, *, limit: float) -> subprocess.CompletedProcess[str]:
        """`script` as a container runtime would run it: with mounts, processes, /run and /tmp of its own."""
        inside = [*_CONTAINER, "sh", "-ec", _ENTER, "sh", str(self.place), script]
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        return subprocess.run(inside, capture_output=True, text=True, timeout=limit, check=False, env=path)


def build_root(release: str, place: Path, *, copied: Sequence[Path], packages: Sequence[str]) -> CleanRoot:
    """A root at `place`, a folder that does not exist. `copied` are files for its /tmp while it is built; `packages`
    may name them."""
    install = f"apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends {' '.join(packages)}"
    hooks = [f"--customize-hook=copy-in {one} /tmp" for one in copied]
    # The program in it builds an image from the package lists of its own apt.
    kept = "--skip=cleanup/apt/lists"
    done = subprocess.run(
        [
            "mmdebstrap",
            "--variant=apt",
            kept,
            *hooks,
            f"--customize-hook=chroot \"$1\" sh -c '{install}'",
            release,
            place,
            read_apt_host().main.uri,
        ],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return CleanRoot(release, place)
