"""The wheel as a person without root uses it, in a clean root of each Debian release: `init` in a project with six
services that has no profile, `apply`, `top` in tmux meanwhile, and the page of `runs` in a browser."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory.browser import read_first_screen, running_browser
from laboratory.clean_root import RELEASES, CleanRoot, build_root
from test_larger_stack import make_repository

from ktrdr_vm.host.paths import PROJECT

pytestmark = pytest.mark.full

# What root does once: a person with subordinate ids.
PERSON = "useradd --create-home --shell /bin/sh anna && usermod -aG kvm anna"
INSTALL = """\
python3 -m venv "$HOME/tool"
"$HOME/tool/bin/pip" install -q "$(echo "$HOME"/ktrdr_vm-*.whl)[host,top]"
"""
PATH = 'export PATH="$HOME/tool/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n'
TRIAL = """\
cd "$HOME/larger"
ktrdr-vm doctor || [ $? -eq 3 ]
ktrdr-vm init --dry-run
"""
DAY = """\
cd "$HOME/larger"
rm -f ktrdr.yaml && rm -rf playbooks
ktrdr-vm init
ktrdr-vm apply --instance-id larger &
apply=$!
tmux -f /dev/null new-session -d -x 80 -y 24 'ktrdr-vm top'
while kill -0 $apply 2>/dev/null; do
    tmux capture-pane -p > "$HOME/screen.new"
    if grep -q 'larger.*starts' "$HOME/screen.new"; then mv "$HOME/screen.new" "$HOME/screen.txt"; fi
    sleep 2
done
wait $apply && code=0 || code=$?
tmux kill-server
ktrdr-vm runs --html "$HOME/runs.html"
echo "instances: $(ktrdr-vm list --json)"
exit $code
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    # Of the commit, since hatchling takes what Git tracks.
    subprocess.run(
        ["git", "-c", f"safe.directory={PROJECT}/.git", "clone", "-q", PROJECT, source], check=True, timeout=120
    )
    made = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(made, check=True, timeout=300)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=RELEASES)
def home(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanRoot]:
    """A root with what docs/hosts.md names, and a person in it with a repository and the installed wheel."""
    place = tmp_path_factory.mktemp(request.param) / "root"
    lists = [PROJECT / "ktrdr_vm/host/packages.txt", PROJECT / "scripts/packages.txt"]
    lines = [line.split() for path in lists for line in path.read_text().splitlines()]
    packages = [words[0] for words in lines if words and not words[0].startswith("#")]
    if request.param == "trixie":
        packages.append("virtiofsd")
    made = build_root(request.param, place, copied=[], packages=[*packages, "tmux"])
    done = subprocess.run(["chroot", place, "sh", "-ec", PERSON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    person = place / "home/anna"
    shutil.copy(wheel, person)
    repository = make_repository(person / "larger")
    for name in ("agent.yaml", "sandbox.yaml"):
        (repository / name).unlink()
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, "commit", "-qam", "no profile"], cwd=repository, check=True, timeout=60)
    _configure_pip(place)
    _give(person)
    installed = as_person(made, INSTALL, limit=900)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    yield made
    shutil.rmtree(place)


def _give(person: Path) -> None:
    """To the person, who has the same ids in the root and outside of it."""
    owner = person.stat()
    subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", person], check=True, timeout=120)


def _configure_pip(place: Path) -> None:
    """As pip of this host is configured: its indexes on the network, and the authorities that it trusts."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, check=True, capture_output=True, text=True, timeout=60).stdout
    made = configparser.RawConfigParser()
    made.add_section("global")
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key, value = name.rpartition(".")[2], value.strip("'")
        if key == "cert" and Path(value).is_absolute():
            copy = place / "etc/pip-authorities.crt"
            shutil.copy(value, copy)
            made.set("global", key, "/etc/pip-authorities.crt")
        elif key in ("index-url", "extra-index-url", "trusted-host", "proxy"):
            remote = [word for word in value.split() if not word.startswith(("file:", "/"))]
            made.set("global", key, " ".join(remote))
    with (place / "etc/pip.conf").open("w") as file:
        made.write(file)


def as_person(root: CleanRoot, script: str, *, limit: float) -> subprocess.CompletedProcess[str]:
    """As somebody who has logged in, without root."""
    (root.place / "home/anna/script").write_text(f"set -e\n{PATH}{script}")
    return root.run("exec runuser -l anna -c 'sh $HOME/script'", limit=limit)


def test_it_looks_at_the_host_and_at_the_project(home: CleanRoot) -> None:
    tried = as_person(home, TRIAL, limit=300)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    missing = {line.split()[1] for line in tried.stdout.splitlines() if line.startswith("missing")}
    assert missing <= {"kvm", "tun"}, tried.stdout
    assert "docker network create larger-monitoring" in tried.stdout


@pytest.mark.vm
def test_a_day_of_a_person(home: CleanRoot) -> None:
    """Three commands of the program and nothing prepared: the image and the template are built by `apply`."""
    person = home.place / "home/anna"
    began = time.monotonic()
    said = as_person(home, DAY, limit=3600)
    print(f"{home.release}: {time.monotonic() - began:.0f} s with the image and the template to build")
    told = said.stdout + said.stderr
    assert said.returncode == 0, told[-6000:]
    assert "PASSED  larger" in told and "residue: none" in told and "instances: []" in told
    assert "larger" in (person / "screen.txt").read_text()
    page = person / "runs.html"
    assert page.stat().st_uid == person.stat().st_uid != os.geteuid()
    with running_browser() as browser:
        browser.get(page.as_uri())
        shown = read_first_screen(browser)
        assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    assert "first runs that pass" in shown and "larger" in shown
