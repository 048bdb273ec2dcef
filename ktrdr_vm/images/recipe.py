"""Image recipes as data: parsed strictly, with all errors at once, and identified by a digest."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from ktrdr_vm.images.document import DocumentReader, Section, read_document

# Part of every digest: increment it if a change of the builder affects images of an unchanged recipe.
BUILDER_VERSION = 1

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
# With a version, so that the digest names what is installed.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!_-]*")
_SUITE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,128}")
_MODULE = re.compile(r"[a-z0-9_-]{1,64}")
_GLOB = re.compile(r"/[A-Za-z0-9/_.*?+@-]+")
_TAG = re.compile(r"[a-z0-9][a-z0-9._/-]{0,100}:[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_SIZE = re.compile(r"([1-9][0-9]*)(MiB|GiB)")
_ARGUMENTS = re.compile(r"[A-Za-z0-9=/._,:+ -]*")
_TEXT = re.compile(r"[^\x00-\x1f]*")
_HINT = "correct the recipe; images/debian-13-docker.yaml is an example"


@dataclass(frozen=True)
class GuestFile:
    """A file that is copied into the bootstrapped root. `path` is relative to it; the owner is root."""

    path: str
    content: bytes
    executable: bool


@dataclass(frozen=True)
class ContainerRecipe:
    """A preloaded container image, because the guest may not reach a registry."""

    name: str
    packages: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A recipe. `size` is that of the disk in bytes; `digest` names the built image in the store."""

    name: str
    suite: str
    security: bool
    size: int
    user: str
    groups: tuple[str, ...]
    packages: tuple[str, ...]
    exclude: tuple[str, ...]
    kernel_args: str
    initrd_modules: tuple[str, ...]
    initrd_init: bytes
    files: tuple[GuestFile, ...]
    enable: tuple[str, ...]
    mask: tuple[str, ...]
    mask_generators: tuple[str, ...]
    containers: tuple[ContainerRecipe, ...]
    python: tuple[str, ...] = ()
    """Python packages, each with its version, from the index that pip of the host is configured for."""

    @property
    def digest(self) -> str:
        """The digest of the content, so that comments and the order of keys cause no rebuild."""
        canonical = json.dumps(
            {"builder": BUILDER_VERSION, "recipe": asdict(self)}, sort_keys=True, default=lambda value: value.hex()
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe and its files. DocumentError with all errors."""
    document = read_document(path, hint=_HINT)
    if document.has("extends"):
        return _extend(path, document)
    top = document.section(
        required=("version", "name", "suite", "disk", "user", "packages", "boot"),
        optional=("security", "groups", "exclude", "files", "units", "containers", "python", "extends"),
    )
    _check_version(top)
    boot = top.section("boot", required=("kernel_args", "modules", "init"))
    units = top.section("units", optional=("enable", "mask", "mask_generators"))
    recipe = Recipe(
        name=top.text("name", _NAME),
        suite=top.text("suite", _SUITE),
        security=top.flag("security", default=True),
        size=_parse_size(top),
        user=top.text("user", _USER),
        groups=top.texts("groups", _USER),
        packages=tuple(sorted(top.texts("packages", _PACKAGE))),
        exclude=top.texts("exclude", _GLOB),
        kernel_args=" ".join(boot.texts("kernel_args", _ARGUMENTS)),
        initrd_modules=boot.texts("modules", _MODULE),
        initrd_init=_read_beside(path, boot, "init"),
        files=_read_tree(path, top, document),
        enable=units.texts("enable", _UNIT),
        mask=units.texts("mask", _UNIT),
        mask_generators=units.texts("mask_generators", _UNIT),
        containers=tuple(_parse_container(section) for section in top.sections("containers")),
        python=tuple(sorted(top.texts("python", _REQUIREMENT))),
    )
    names = [container.name for container in recipe.containers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        top.complain("containers", f"{name} occurs twice")
    document.raise_problems()
    return recipe


def _check_version(top: Section) -> None:
    if top.scalar("version") not in ("1", ""):
        top.complain("version", "must be 1, the only version")


def _extend(path: Path, document: DocumentReader) -> Recipe:
    """A recipe that adds packages to another one of its folder, and replaces its disk size."""
    top = document.section(required=("version", "name", "extends"), optional=("disk", "packages", "python"))
    _check_version(top)
    name, given, packages = top.text("name", _NAME), top.scalar("extends"), top.texts("packages", _PACKAGE)
    python, size = top.texts("python", _REQUIREMENT), _parse_size(top)
    place = _resolve_beneath(path, given) if given else None
    if given and (place is None or not place.is_file() or place == path.resolve() or "/" in given):
        top.complain("extends", f"{given} is not another recipe in the folder of this one")
    document.raise_problems()
    assert place is not None, "it is a required key"
    if read_document(place, hint=_HINT).has("extends"):
        top.complain("extends", f"{given} extends a recipe itself; extend that one")
        document.raise_problems()
    base = load_recipe(place)
    return replace(
        base,
        name=name,
        size=size or base.size,
        packages=tuple(sorted({*base.packages, *packages})),
        python=tuple(sorted({*base.python, *python})),
    )


def _parse_size(top: Section) -> int:
    match = _SIZE.fullmatch(top.text("disk", _SIZE))
    if match is None:
        return 0
    return int(match[1]) * (1 << 30 if match[2] == "GiB" else 1 << 20)


def _parse_container(reader: DocumentReader) -> ContainerRecipe:
    section = reader.section(required=("name", "packages"), optional=("exclude", "command", "environment"))
    return ContainerRecipe(
        name=section.text("name", _TAG),
        packages=tuple(sorted(section.texts("packages", _PACKAGE))),
        exclude=section.texts("exclude", _GLOB),
        command=section.texts("command", _TEXT),
        environment=section.mapping("environment", _VARIABLE, _TEXT),
    )


def _read_beside(recipe: Path, section: Section, key: str) -> bytes:
    """A file that the recipe names. It must be in the folder of the recipe."""
    relative = section.scalar(key)
    if not relative:
        return b""
    place = _resolve_beneath(recipe, relative)
    if place is None or not place.is_file():
        section.complain(key, f"{relative} is not a file in the folder of the recipe")
        return b""
    return place.read_bytes()


def _read_tree(recipe: Path, section: Section, document: DocumentReader) -> tuple[GuestFile, ...]:
    relative = section.scalar("files")
    if not relative:
        return ()
    top = _resolve_beneath(recipe, relative)
    if top is None or not top.is_dir():
        section.complain("files", f"{relative} is not a directory in the folder of the recipe")
        return ()
    files = []
    for place in sorted(top.rglob("*")):
        mode = place.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            section.complain("files", f"{place.relative_to(recipe.parent)} is not a regular file")
            continue
        files.append(GuestFile(str(place.relative_to(top)), place.read_bytes(), bool(mode & stat.S_IXUSR)))
    return tuple(files)


def _resolve_beneath(recipe: Path, relative: str) -> Path | None:
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts:
        return None
    place = (recipe.parent / pure).resolve()
    return place if place.is_relative_to(recipe.parent.resolve()) else None
