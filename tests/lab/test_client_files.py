"""The script that writes the settings of package clients, run by a real shell in a folder, twice. No VM."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ktrdr_vm.guest.clients import configure_clients
from ktrdr_vm.guest.protocol import GuestResult
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.inputs.presets import APT_SOURCES
from ktrdr_vm.plan.facts import AUTHORITIES, BUNDLE, Facts, GuestFile, ImageFacts
from ktrdr_vm.plan.plan import Plan
from ktrdr_vm.profile.load import build_profile
from tests.fakes.guest import RefusingGuest

SOURCE = {"version": 1, "name": "n", "image": "i"}


class PrefixedGuest(RefusingGuest):
    """A guest that is a folder: absolute paths of the script are beneath it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self,
        command: Sequence[str] | str,
        *,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        **_more: Any,
    ) -> GuestResult:
        assert isinstance(command, str)
        for name in ("/etc/", "/usr/local/", "--directory /"):
            command = command.replace(
                name, name[:-1] + f"{self.folder}" if name.endswith(" /") else f"{self.folder}{name}"
            )
        if not (self.folder / "bin").exists():
            command = command.replace("command -v update-ca-trust", "false")
        done = subprocess.run(
            ["sh", "-c", command],
            input=stdin,
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin", **(environment or {})},
            capture_output=True,
            check=False,
        )
        return GuestResult(done.returncode, done.stdout, done.stderr)


def write(folder: Path, *files: GuestFile) -> None:
    facts = Facts("tcg", "/e", "m", "/h", ImageFacts("i", "d" * 64, "/i"), client_files=files)
    configure_clients(PrefixedGuest(folder), Plan(build_profile(SOURCE), facts, parse_instance_id("a"), SOURCE))


def test_authorities_are_added_to_the_bundle_once_and_old_ones_go(tmp_path: Path) -> None:
    bundle = tmp_path / BUNDLE.lstrip("/")
    bundle.parent.mkdir(parents=True)
    bundle.write_text("PUBLIC\n")
    write(tmp_path, GuestFile(f"{AUTHORITIES}1.crt", "OLD\n", "x"), GuestFile("/etc/pip.conf", "[global]\n", "y"))
    for _ in range(2):
        write(tmp_path, GuestFile(f"{AUTHORITIES}2.crt", "NEW\n", "x"))
        assert bundle.read_text() == "PUBLIC\n# ktrdr-vm begin\nNEW\n# ktrdr-vm end\n"
    assert (tmp_path / "etc/ktrdr/authorities.pem").read_text() == "NEW\n"
    assert [path.name for path in (tmp_path / "usr/local/share/ca-certificates").iterdir()] == ["ktrdr-2.crt"]
    assert (tmp_path / "etc/pip.conf").read_text() == "[global]\n"


@pytest.mark.parametrize("has_it", [False, True])
def test_where_the_bundle_has_another_name_it_has_that_of_debian_too(tmp_path: Path, has_it: bool) -> None:
    """Fedora and its relatives: clients in the guest are told that name."""
    made = tmp_path / "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
    anchors, bundle = tmp_path / "etc/pki/ca-trust/source/anchors", tmp_path / BUNDLE.lstrip("/")
    for folder in (made.parent, anchors, bundle.parent, tmp_path / "bin"):
        folder.mkdir(parents=True)
    program = tmp_path / "bin/update-ca-trust"
    program.write_text(f"#!/bin/sh\ncat {anchors}/* > {made}\n")
    program.chmod(0o755)
    if has_it:
        bundle.symlink_to("../../pki/ca-trust/extracted/pem/tls-ca-bundle.pem")
        made.write_text("")
    for _ in range(2):
        write(tmp_path, GuestFile(f"{AUTHORITIES}1.crt", "OWN\n", "x"))
    assert bundle.read_text() == "OWN\n"


def test_apt_of_a_stock_debian_asks_the_archives_of_the_host(tmp_path: Path) -> None:
    for name, text in (("os-release", "ID=debian\nVERSION_CODENAME=trixie\n"), ("apt/sources.list", "deb old\n")):
        (tmp_path / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "etc" / name).write_text(text)
    (tmp_path / "etc/apt/sources.list.d").mkdir()
    write(
        tmp_path,
        GuestFile(
            APT_SOURCES, "URIs: http://mirror.example/debian\nSuites: @RELEASE@ @RELEASE@-updates\n", "preset debian"
        ),
    )
    assert (tmp_path / "etc/apt/sources.list.d/debian.sources").read_text().endswith("Suites: trixie trixie-updates\n")
    assert not (tmp_path / "etc/apt/sources.list").exists()
