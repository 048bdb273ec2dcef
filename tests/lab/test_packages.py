"""The Debian package: built with Debian's tools, checked by lintian, and installed in clean roots of both releases, where
it runs the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.clean_root import RELEASES, CleanRoot, build_root

from ktrdr_vm.host.paths import PROJECT

# Of the root alone: plans without a repository of this host, and /proc of its own.
TRIAL = """\
set -e
cd /root && git init -q repository && cd repository
git -c user.name=a -c user.email=a@example.org commit -q --allow-empty -m first
ktrdr-vm --version
ktrdr-vm validate agent
ktrdr-vm plan startability
man -w ktrdr-vm-apply >/dev/null
for shell in bash zsh fish; do _KTRDR_VM_COMPLETE=${shell}_source ktrdr-vm >/dev/null; done
ktrdr-vm doctor || [ $? -eq 3 ]
"""
# docs/hosts.md tells to start both where no systemd does.
DEMO = """\
set -e
cd /root/demo && git init -q
git -c user.name=a -c user.email=a@example.org add -A
git -c user.name=a -c user.email=a@example.org commit -q -m first
virtlogd -d
libvirtd -d
ktrdr-vm init
ktrdr-vm apply --instance-id packaged
echo "instances: $(ktrdr-vm list --json)"
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built by scripts/deb from a copy of the tracked files."""
    place = tmp_path_factory.mktemp("package") / "source"
    git = ["git", "-c", f"safe.directory={PROJECT}", "-C", str(PROJECT)]
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (PROJECT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, place / name)
    made = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(place)]
    subprocess.run([*made, "init", "-q"], check=True, timeout=60)
    subprocess.run([*made, "add", "-A"], check=True, timeout=60)
    subprocess.run([*made, "commit", "-q", "-m", "sources"], check=True, timeout=60)
    environment = {**os.environ, "KTRDR_VM_VERSION": "1.2.3rc4"}
    done = subprocess.run(
        [place / "scripts/deb"], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if shutil.which("lintian"):
        assert "lintian has no errors" in done.stderr
    [built] = (place / "dist").glob("*.deb")
    return built


def ask(package: Path, *words: str) -> str:
    return subprocess.run(["dpkg-deb", *words, package], check=True, capture_output=True, text=True, timeout=60).stdout


def test_it_holds_the_program_its_documents_man_pages_and_completions(package: Path) -> None:
    names = {line.split()[5].removeprefix("./") for line in ask(package, "--contents").splitlines()}
    inside = "usr/lib/python3/dist-packages/ktrdr_vm"
    assert {
        "usr/bin/ktrdr-vm",
        f"{inside}/shipped/profiles/agent.yaml",
        f"{inside}/shipped/playbooks/startability.yaml",
        f"{inside}/shipped/images/debian-13-docker.yaml",
        f"{inside}/shipped/dashboards/instance.json",
        "usr/share/man/man1/ktrdr-vm.1.gz",
        "usr/share/man/man1/ktrdr-vm-escalations-approve.1.gz",
        "usr/share/bash-completion/completions/ktrdr-vm",
        "usr/share/zsh/vendor-completions/_ktrdr-vm",
        "usr/share/fish/vendor_completions.d/ktrdr-vm.fish",
    } <= names
    assert not any(
        name.startswith(("usr/lib/python3/dist-packages/tests", "usr/lib/python3/dist-packages/bench"))
        for name in names
    )


def test_its_version_sorts_before_the_release(package: Path) -> None:
    version = ask(package, "--field").split("Version: ")[1].split("\n")[0]
    assert version == "1.2.3~rc4"
    subprocess.run(["dpkg", "--compare-versions", version, "lt", "1.2.3"], check=True, timeout=10)


@pytest.fixture(scope="module", params=RELEASES)
def clean_root(
    package: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CleanRoot]:
    place = tmp_path_factory.mktemp(request.param) / "root"
    made = build_root(request.param, place, copied=[package], packages=["man-db", "/tmp/*.deb"])
    shutil.copytree(PROJECT / "examples/demo-stack", place / "root/demo", ignore=shutil.ignore_patterns("__pycache__"))
    yield made
    shutil.rmtree(place)


@pytest.mark.full
def test_it_works_in_a_clean_root(clean_root: CleanRoot) -> None:
    tried = clean_root.run(TRIAL, limit=300)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "ktrdr-vm, version 1.2.3rc4" in tried.stdout and "digest " in tried.stdout
    # What the package depends on is there: doctor misses only what no package brings to a root without a kernel.
    missing = {line.split()[1] for line in tried.stdout.splitlines() if line.startswith("missing")}
    assert missing <= {"libvirtd", "tun", "firewall"}, tried.stdout


@pytest.mark.full
@pytest.mark.vm
def test_it_runs_the_demo_in_a_clean_root(clean_root: CleanRoot) -> None:
    """As a user of the package does on a host without systemd: `init` in a project, then `apply`."""
    began = time.monotonic()
    tried = clean_root.run(DEMO, limit=2400)
    said = tried.stdout + tried.stderr
    print(f"{clean_root.release}: {time.monotonic() - began:.0f} s with the image and the template to build")
    assert tried.returncode == 0, said[-6000:]
    assert "PASSED  packaged" in said and "residue: none" in said
    assert "instances: []" in said, said[-3000:]
