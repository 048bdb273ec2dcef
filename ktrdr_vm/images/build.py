"""Build an image from a recipe: bootstrap, customize, preload containers, strip, write the disk, rename into place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ktrdr_vm.errors import HostError, ProvisionError
from ktrdr_vm.host import process
from ktrdr_vm.images import bootstrap, containers, customize, disk, initrd, python_packages
from ktrdr_vm.images.apt import AptHost, read_apt_host
from ktrdr_vm.images.recipe import ContainerRecipe, Recipe
from ktrdr_vm.images.store import Image, ImageStore

_PROGRAMS = ("apt-get", "chroot", "cpio", "dpkg-query", "mke2fs", "mmdebstrap", "mount", "unshare")
# For the root, the archive of a container image and its import at the same time.
_SPACE = 5 << 30


def build_image(recipe: Recipe, store: ImageStore, *, progress: Callable[[str], None]) -> Image:
    """The image of this recipe: the existing one, or a new one. Waits while another process builds it."""
    found = store.find(recipe.digest)
    if found is not None:
        return found
    with store.lock(recipe.digest):
        found = store.find(recipe.digest)
        if found is not None:
            return found
        _check_host(store.root)
        if recipe.python:
            python_packages.require_pip()
        host = read_apt_host()
        with store.create(recipe.digest) as directory, _usual_umask():
            return _build(recipe, host, store, directory, progress)


@contextlib.contextmanager
def _usual_umask() -> Iterator[None]:
    """In the block, folders of the image that a program creates can be entered in the guest. With the umask 077 of some
    hosts only root could, and the digest of the image would be the same."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _build(recipe: Recipe, host: AptHost, store: ImageStore, directory: Path, progress: Callable[[str], None]) -> Image:
    root, scratch = directory / "root", directory / "scratch"
    scratch.mkdir(mode=0o711)
    progress(f"{recipe.name}: installing {len(recipe.packages)} packages of {recipe.suite} and their dependencies")
    bootstrap.run_mmdebstrap(
        bootstrap.make_mmdebstrap_argv(
            host, recipe.suite, root,
            variant="minbase", security=recipe.security, packages=recipe.packages, exclude=recipe.exclude,
        ),
        scratch,
    )  # fmt: skip
    packages = bootstrap.read_packages(root)
    progress(f"{recipe.name}: configuring the guest")
    customize.create_user(root, recipe.user, recipe.groups)
    customize.write_files(root, recipe.files)
    customize.configure_units(root, recipe)
    version = _find_kernel(root)
    customize.unpack_modules(root, version)
    if recipe.python:
        progress(f"{recipe.name}: installing {len(recipe.python)} Python packages")
        python_packages.install(root, recipe.python)
    preloaded = {
        container.name: _preload(container, recipe, host, root, scratch, progress) for container in recipe.containers
    }
    for place in containers.list_state_to_remove(root):
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    progress(f"{recipe.name}: writing the disk")
    shutil.copyfile(root / f"boot/vmlinuz-{version}", directory / "vmlinuz")
    (scratch / "initrd").mkdir()
    initrd.build_initrd(
        root, version, recipe.initrd_modules, recipe.initrd_init, directory / "initrd", scratch / "initrd"
    )
    customize.strip(root, host, recipe)
    disk.create_disk(root, directory / "disk.raw", recipe.size, recipe.digest)
    shutil.rmtree(root)
    shutil.rmtree(scratch)
    sums = {name: disk.hash_file(directory / name) for name in ("disk.raw", "initrd", "vmlinuz")}
    image = store.commit(
        directory,
        {
            "name": recipe.name,
            "digest": recipe.digest,
            "content_digest": sums["disk.raw"],
            "disk_format": "raw",
            "boot": "direct",
            "kernel_args": recipe.kernel_args,
            "user": recipe.user,
            "virtual_size": recipe.size,
            "manifest": {
                "suite": recipe.suite,
                "kernel": version,
                "files": sums,
                "packages": packages,
                "containers": preloaded,
                "python": list(recipe.python),
            },
        },
    )
    progress(f"{recipe.name}: built {recipe.digest[:12]}")
    return image


def _preload(
    container: ContainerRecipe,
    recipe: Recipe,
    host: AptHost,
    root: Path,
    scratch: Path,
    progress: Callable[[str], None],
) -> dict[str, object]:
    progress(f"{recipe.name}: creating the container image {container.name}")
    archive = scratch / "container.tar"
    bootstrap.run_mmdebstrap(
        (
            *bootstrap.make_mmdebstrap_argv(
                host, recipe.suite, archive,
                variant="essential", security=recipe.security, packages=container.packages, exclude=container.exclude,
            ),
        ),
        scratch,
    )  # fmt: skip
    described = containers.import_container(root, archive, container)
    archive.unlink()
    return described


def _find_kernel(root: Path) -> str:
    versions = sorted(place.name for place in (root / "usr/lib/modules").iterdir())
    if len(versions) != 1:
        raise ProvisionError(
            f"the image has {len(versions)} kernels: {', '.join(versions) or 'none'}",
            hint="the packages of the recipe must contain exactly one, such as linux-image-cloud-amd64",
        )
    return versions[0]


def _check_host(root: Path) -> None:
    """Check the requirements first, because a build takes minutes."""
    if os.geteuid() != 0:
        raise HostError("building an image requires root", hint="run `sudo ktrdr-vm images build` once")
    for program in _PROGRAMS:
        process.require_program(program)
    free = shutil.disk_usage(root).free
    if free < _SPACE:
        raise HostError(
            f"{free >> 20} MiB are free, and a build requires {_SPACE >> 20}",
            where=str(root),
            hint="free disk space, or remove images",
        )
