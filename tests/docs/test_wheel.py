"""A wheel holds what a checkout ships: installed alone, it plans every shipped profile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from ktrdr_vm.host.paths import PROJECT

SHIPPED = ("profiles", "playbooks", "images", "dashboards")
PROFILES = sorted(path.stem for path in (PROJECT / "profiles").glob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in ("ktrdr_vm", *SHIPPED):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)], check=True, timeout=120)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its dependencies, and without the checkout."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    # The dependencies are this environment's; a folder that is named in a .pth file is not searched for further ones, such as the checkout's.
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    found = subprocess.run([python, "-c", "import ktrdr_vm; print(ktrdr_vm.__file__)"], check=True, capture_output=True, text=True, cwd="/")
    assert Path(found.stdout.strip()).is_relative_to(place)
    return place


def test_every_shipped_file_is_in_it(wheel: Path) -> None:
    wanted = {
        f"{path.relative_to(PROJECT)}"
        for top in SHIPPED
        for path in (PROJECT / top).rglob("*")
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(PROJECT).parts)
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name.partition("/data/share/ktrdr-vm/")[2] for name in archive.namelist()} - {""}
    assert wanted and held == wanted


@pytest.mark.parametrize("name", PROFILES)
def test_it_plans_each_shipped_profile(installed: Path, tmp_path: Path, name: str) -> None:
    repository = tmp_path / "repository"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q", str(repository)], check=True, timeout=60)
    subprocess.run([*git, "-C", str(repository), "commit", "-q", "--allow-empty", "-m", "first"], check=True, timeout=60)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KTRDR_VM_HOME": str(tmp_path / "home")}
    (repository / "sandbox.yaml").write_text(f"version: 1\nname: {name}\nextends: {name}\n")
    done = subprocess.run(
        [str(installed / "bin" / "ktrdr-vm"), "plan", "repository/sandbox.yaml", "--workspace", str(repository)],
        env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "digest " in done.stdout
