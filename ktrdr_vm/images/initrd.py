"""The initrd: busybox, the driver of the disk and a shell `init`. About 1 MB packed, instead of 17 MB."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host import process

_APPLETS = ("cat", "insmod", "mount", "poweroff", "sh", "switch_root", "umount", "usleep")
_DIRECTORIES = ("bin", "dev", "mnt", "modules", "proc")


def parse_dependencies(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """`modules.dep` of depmod: module name to its file and its dependencies."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for line in text.splitlines():
        file, _, needed = line.partition(":")
        found[make_module_name(file)] = (file, tuple(make_module_name(other) for other in needed.split()))
    return found


def make_module_name(file: str) -> str:
    return file.rpartition("/")[2].partition(".")[0].replace("-", "_")


def order_modules(
    wanted: Sequence[str], dependencies: Mapping[str, tuple[str, tuple[str, ...]]], builtin: frozenset[str]
) -> tuple[str, ...]:
    """The files to load, each after its dependencies, without built-in modules."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name in builtin:
            return
        if name not in dependencies:
            raise ProvisionError(f"the kernel has no module {name}", hint="correct boot.modules in the recipe")
        file, needed = dependencies[name]
        if file in ordered:
            return
        for other in needed:
            visit(other)
        if file not in ordered:
            ordered.append(file)

    for name in wanted:
        visit(name.replace("-", "_"))
    return tuple(ordered)


def build_initrd(root: Path, version: str, modules: Sequence[str], init: bytes, target: Path, scratch: Path) -> None:
    """Write the packed archive to `target`. `scratch` is an empty directory for its content."""
    tree = root / "usr/lib/modules" / version
    dependencies = parse_dependencies((tree / "modules.dep").read_text(encoding="utf-8"))
    builtin = frozenset(
        make_module_name(line) for line in (tree / "modules.builtin").read_text(encoding="utf-8").splitlines()
    )
    for name in _DIRECTORIES:
        (scratch / name).mkdir()
    names = []
    for file in order_modules(modules, dependencies, builtin):
        place = tree / file
        (scratch / "modules" / place.name).write_bytes(place.read_bytes())
        names.append(place.name)
    (scratch / "modules/order").write_text("".join(f"{name}\n" for name in names), encoding="ascii")
    (scratch / "bin/busybox").write_bytes((root / "usr/bin/busybox").read_bytes())
    (scratch / "bin/busybox").chmod(0o755)
    for applet in _APPLETS:
        (scratch / "bin" / applet).symlink_to("busybox")
    (scratch / "init").write_bytes(init)
    (scratch / "init").chmod(0o755)
    entries = sorted(str(place.relative_to(scratch)) for place in scratch.rglob("*"))
    archive = process.run(
        ["cpio", "--create", "--format=newc", "--null", "--reproducible", "--owner=0:0", "--quiet"],
        stdin="".join(f"{entry}\0" for entry in entries).encode(),
        cwd=scratch,
        timeout=60,
    )
    target.write_bytes(gzip.compress(archive.stdout, mtime=0))
