"""Python packages of a recipe: fetched with pip of the host, as it is configured, and installed offline in the root of
the guest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ktrdr_vm.errors import HostError
from ktrdr_vm.host import process
from ktrdr_vm.host.package_sources import find_client_home

_WHEELS = "tmp/wheels"
# A wheel of a program can be some tens of megabytes.
_LIMIT = 600.0
_PYTHON = "/usr/bin/python3"
_HOST_PYTHON = "python3"


def require_pip() -> None:
    """HostError unless the host has pip, which is known before the packages of Debian are installed."""
    words = [_HOST_PYTHON, "-m", "pip", "--version"]
    said = process.run(words, timeout=60, environment=_make_environment(), check=False)
    if said.exit_code != 0:
        raise HostError(
            "the recipe has Python packages, and this host has no pip to fetch them with",
            where=_HOST_PYTHON,
            hint="apt-get install python3-pip",
        )


def _make_environment() -> dict[str, str]:
    """With the settings of pip of this user, such as the index of a company."""
    return {"HOME": find_client_home(os.geteuid()), "PATH": os.environ.get("PATH", process.SYSTEM_PATH)}


def install(root: Path, packages: Sequence[str]) -> None:
    """Install the packages, each `name==version`, and nothing that they depend on. Only wheels: nothing of them runs on
    this host.

    ProvisionError if the host has no pip, the index does not have one of them, or the root has no pip.
    """
    wheels = root / _WHEELS
    wheels.mkdir(parents=True)
    version = process.run(
        ["chroot", root, _PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], timeout=60
    ).text.strip()
    process.run(
        [
            _HOST_PYTHON,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--python-version",
            version,
            "--platform",
            "manylinux_2_28_x86_64",
            "--platform",
            "manylinux2014_x86_64",
            "--platform",
            "any",
            "--dest",
            wheels,
            *packages,
        ],
        timeout=_LIMIT,
        environment=_make_environment(),
        cwd=Path("/"),
    )
    process.run(
        [
            "chroot",
            root,
            _PYTHON,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--break-system-packages",
            "--root-user-action",
            "ignore",
            "--find-links",
            f"/{_WHEELS}",
            *packages,
        ],
        timeout=_LIMIT,
    )
    shutil.rmtree(wheels)
