"""The Debian package: built with Debian's tools, checked by lintian, and installed in clean roots of both releases. No
VM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.images.apt import read_apt_host

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


@pytest.mark.full
@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_it_works_in_a_clean_root(package: Path, release: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    install = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends man-db /tmp/*.deb"
    hooks = [f"--customize-hook=copy-in {package} /tmp", f"--customize-hook=chroot \"$1\" sh -c '{install}'"]
    done = subprocess.run(
        ["mmdebstrap", "--variant=apt", *hooks, release, root, read_apt_host().main.uri],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    try:
        inside = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            f"--mount-proc={root}/proc",
            "chroot",
            str(root),
            "sh",
            "-c",
            TRIAL,
        ]
        tried = subprocess.run(
            inside,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert "ktrdr-vm, version 1.2.3rc4" in tried.stdout and "digest " in tried.stdout
        # What the package depends on is there: doctor misses only what no package brings to a root without a kernel.
        missing = {line.split()[1] for line in tried.stdout.splitlines() if line.startswith("missing")}
        assert missing <= {"libvirtd", "tun", "firewall"}, tried.stdout
    finally:
        shutil.rmtree(root)
