"""Importing container images into the Docker of an image at build time, with that Docker, natively and without a
network."""

from __future__ import annotations

import json
from pathlib import Path

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import process
from ktrdr_vm.images.recipe import ContainerRecipe

_TIMEOUT = 900.0

# The dockerd of the guest, so that its storage format is used. It runs in separate namespaces, without a
# network, and when the first process ends, the kernel removes the daemons and the mounts.
_CONTAINED = ("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child", "--")

# $1 is the root, $2 the archive, $3 the image's name, the rest is for `docker import`.
_SCRIPT = r"""
set -eu
root=$1 archive=$2 name=$3
shift 3
exec 3<"$archive"
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for node in null zero full random urandom; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
exec chroot . /bin/sh -c '
    export DOCKER_HOST=unix:///run/docker.sock
    name=$1
    shift
    echo "{}" >/run/none.json
    dockerd --config-file=/run/none.json --bridge=none --iptables=false --ip6tables=false --ip-forward=false \
        --ip-masq=false --storage-driver=overlay2 --host="$DOCKER_HOST" </dev/null >/run/dockerd.log 2>&1 3<&- &
    daemon=$!
    fail() { tail -n 30 /run/dockerd.log >&2; echo "$1" >&2; exit 1; }
    tries=0
    until docker version >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || fail "dockerd ended"
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || fail "dockerd did not answer within 60 s"
        sleep 0.1
    done
    docker import "$@" - "$name" <&3 >/dev/null || fail "docker import failed"
    docker image inspect "$name"
    kill "$daemon"
    wait "$daemon" || true
' import "$name" "$@"
"""

# Only images are kept. Docker creates the rest of its state at its first start; some of it would be specific to this
# host.
_KEPT = frozenset({"image", "overlay2"})


def make_import_options(container: ContainerRecipe) -> tuple[str, ...]:
    """The Dockerfile instructions for `docker import`."""
    changes = [f"ENV {name}={json.dumps(value)}" for name, value in container.environment]
    if container.command:
        changes.append(f"CMD {json.dumps(list(container.command))}")
    return tuple(word for change in changes for word in ("--change", change))


def import_container(root: Path, archive: Path, container: ContainerRecipe) -> dict[str, object]:
    """Import a root archive into the Docker of `root`. Returns the image's identifier and size in bytes."""
    _require_overlay()
    argv: list[str | Path] = [
        *_CONTAINED,
        "sh",
        "-c",
        _SCRIPT,
        "import",
        root,
        archive,
        container.name,
        *make_import_options(container),
    ]
    completed = process.run(argv, timeout=_TIMEOUT)
    (described,) = json.loads(completed.text)
    return {"id": described["Id"], "size": described["Size"]}


def list_state_to_remove(root: Path) -> tuple[Path, ...]:
    """Remove the files that the daemon wrote in addition to images."""
    state = root / "var/lib/docker"
    return tuple(sorted(place for place in state.iterdir() if place.name not in _KEPT)) if state.is_dir() else ()


def _require_overlay() -> None:
    """Check for the overlay file system, which the kernel of the build host must support."""
    if "\toverlay\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        loaded = process.run(["modprobe", "overlay"], timeout=30, check=False)
        if loaded.exit_code != 0:
            raise HostError(
                f"the kernel of this host has no overlay file system: {loaded.error_text}",
                hint="it is required for preloaded container images: run `modprobe overlay`",
            )
