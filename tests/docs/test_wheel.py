"""A wheel holds what a checkout ships: installed alone, without the checkout and without libvirt, it plans every
shipped profile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.images.recipe import load_recipe

SHIPPED = ("profiles", "playbooks", "images", "dashboards")
PROFILES = sorted(path.stem for path in (PROJECT / "profiles").glob("*.yaml"))
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the working tree, and the wheel that is built from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("distributions")
    tracked = subprocess.run(
        ["git", "-c", f"safe.directory={PROJECT}", "-C", str(PROJECT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, source / name)
    build = ["-c", "import sys; from hatchling import build; print(build.build_sdist(sys.argv[1]))", str(out)]
    subprocess.run([sys.executable, *build], check=True, timeout=120, cwd=source, capture_output=True)
    [sdist] = out.glob("*.tar.gz")
    subprocess.run(
        [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(sdist)], check=True, timeout=120
    )
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    [built] = distributions.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its dependencies from the index, and nothing else."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(place, symlinks=True)
    pip = [*PIP, "--python", str(place / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "-c", str(PROJECT / "constraints.txt"), str(wheel)], check=True, timeout=300)
    return place


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    place = tmp_path / "repository"
    subprocess.run([*GIT, "init", "-q", str(place)], check=True, timeout=60)
    subprocess.run([*GIT, "-C", str(place), "commit", "-q", "--allow-empty", "-m", "first"], check=True, timeout=60)
    return place


def run(installed: Path, *words: str, where: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(where), "KTRDR_VM_HOME": str(where / "home"), **variables}
    return subprocess.run(
        [str(installed / "bin" / "ktrdr-vm"), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=where,
    )


def find_shipped_files() -> set[str]:
    """All files of the shipped folders, caches excepted."""
    return {
        str(path.relative_to(PROJECT))
        for top in SHIPPED
        for path in (PROJECT / top).rglob("*")
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(PROJECT).parts)
    }


def test_every_shipped_file_is_in_the_wheel_and_in_the_sdist(distributions: Path, wheel: Path) -> None:
    wanted = find_shipped_files()
    with zipfile.ZipFile(wheel) as archive:
        held = {
            name.removeprefix("ktrdr_vm/shipped/")
            for name in archive.namelist()
            if name.startswith("ktrdr_vm/shipped/")
        }
    assert wanted and held == wanted
    [sdist] = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert wanted <= names and {"pyproject.toml", "CHANGELOG.md", "tests/docs/test_wheel.py"} <= names


def test_the_files_are_those_of_the_checkout(installed: Path) -> None:
    [shipped] = installed.glob("lib/python*/site-packages/ktrdr_vm/shipped")

    def digest(top: Path) -> dict[str, tuple[str, int]]:
        # The digest of a recipe covers the mode of its files too.
        return {
            name: (hashlib.sha256((top / name).read_bytes()).hexdigest(), (top / name).stat().st_mode & 0o111)
            for name in find_shipped_files()
        }

    assert digest(shipped) == digest(PROJECT)
    assert (
        load_recipe(shipped / "images/debian-13-docker.yaml").digest
        == load_recipe(PROJECT / "images/debian-13-docker.yaml").digest
    )


@pytest.mark.parametrize("name", PROFILES)
def test_it_plans_each_shipped_profile(installed: Path, repository: Path, name: str) -> None:
    (repository / "sandbox.yaml").write_text(f"version: 1\nname: {name}\nextends: {name}\n")
    done = run(installed, "plan", "repository/sandbox.yaml", "--workspace", str(repository), where=repository.parent)
    assert done.returncode == 0, done.stderr
    assert "digest " in done.stdout
    # A shipped profile can also be named itself.
    for command in ("plan", "validate"):
        done = run(installed, command, name, where=repository)
        assert done.returncode == 0, done.stderr


def test_it_works_without_the_binding_of_libvirt(installed: Path, repository: Path) -> None:
    assert subprocess.run(
        [installed / "bin/python", "-c", "import libvirt"], capture_output=True, check=False
    ).returncode
    said = run(installed, "doctor", "--json", where=repository)
    [check] = [one for one in json.loads(said.stdout) if one["name"] == "libvirt-python"]
    assert said.returncode == 3 and check["state"] == "missing" and "ktrdr-vm[host]" in check["fix"]
    needs = run(installed, "list", where=repository)
    assert needs.returncode in (0, 3) and "Traceback" not in needs.stderr


def test_it_says_its_version(installed: Path, wheel: Path, tmp_path: Path) -> None:
    done = run(installed, "--version", where=tmp_path)
    assert done.stdout.split()[-1] == wheel.name.split("-")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_completes(installed: Path, tmp_path: Path, shell: str) -> None:
    script = run(installed, where=tmp_path, _KTRDR_VM_COMPLETE=f"{shell}_source").stdout
    assert "_KTRDR_VM_COMPLETE" in script and "ktrdr-vm" in script
    offered = run(
        installed,
        where=tmp_path,
        _KTRDR_VM_COMPLETE=f"{shell}_complete",
        COMP_WORDS="ktrdr-vm val",
        COMP_CWORD="1" if shell != "fish" else "val",
    )
    assert "validate" in offered.stdout
