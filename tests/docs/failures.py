"""The likely first failures: each is provoked, and docs/troubleshooting.md shows what the program says then.

`python tests/docs/failures.py --write` writes the page.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
from click.testing import CliRunner

from ktrdr_vm.cli.main import cli
from ktrdr_vm.errors import HostError, KtrdrError
from ktrdr_vm.host import capacity, libvirt, libvirt_binding, package_sources, process, sub_ids
from ktrdr_vm.host.accelerator import Accelerator
from ktrdr_vm.host.paths import PROJECT, Home
from ktrdr_vm.images.fetch import fetch_image
from ktrdr_vm.images.store import ImageStore
from ktrdr_vm.instance.secret_sources import read_source
from ktrdr_vm.monitoring import doctor
from ktrdr_vm.monitoring.check import Check
from ktrdr_vm.policy import load
from ktrdr_vm.profile.model import Secret

PAGE = PROJECT / "docs" / "troubleshooting.md"
# What the page shows for the folder in which a failure is provoked.
SHOWN = "/home/me/project"
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
HEAD = "version: 1\nname: p\nimage: debian-13-docker\n"


@dataclass(frozen=True)
class Failure:
    """What happened, in the words of a heading, why, and how it is provoked in an empty folder that is the current
    one."""

    title: str
    cause: str
    provoke: Callable[[Path], object]


def command(*words: str) -> None:
    """Run a command in this process. Its error is raised."""
    result = CliRunner().invoke(cli, list(words), standalone_mode=False)
    if isinstance(result.exception, click.ClickException):
        raise AssertionError(result.exception.format_message())
    if result.exception is not None:
        raise result.exception


def commit(place: Path, **files: str) -> None:
    """A repository with one commit; keywords name files, with two underscores for a dot."""
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(
            [*GIT, "-C", str(place), *words],
            check=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(place)},
        )


def plan(text: str, *words: str) -> Callable[[Path], None]:
    """Plan a profile with these keys."""

    def provoke(place: Path) -> None:
        commit(place, profile__yaml=HEAD + text)
        command("plan", "profile.yaml", *words)

    return provoke


def plan_with_gate(playbook: str) -> Callable[[Path], None]:
    def provoke(place: Path) -> None:
        (place / "playbooks").mkdir()
        (place / "playbooks/orders.yaml").write_text(playbook)
        commit(place, profile__yaml=f"{HEAD}workspace: {{}}\ngates: [orders]\n")
        command("plan", "profile.yaml")

    return provoke


def plan_outside(place: Path) -> None:
    (place / "profile.yaml").write_text(f"{HEAD}workspace: {{}}\n")
    command("plan", "profile.yaml")


def plan_without_commit(place: Path) -> None:
    subprocess.run([*GIT, "init", "-q", str(place)], check=True, timeout=60)
    plan_outside(place)


def plan_shared_clone(place: Path) -> None:
    (place / "first").mkdir()
    commit(place / "first")
    subprocess.run([*GIT, "clone", "-q", "--shared", "first", "second"], check=True, timeout=60, cwd=place)
    (place / "second/profile.yaml").write_text(f"{HEAD}workspace: {{}}\n")
    command("plan", "second/profile.yaml", "--workspace", "second")


def plan_without_profile(place: Path) -> None:
    commit(place)
    command("plan")


def plan_without_npm(place: Path) -> None:
    missing = HostError("the program npm is not installed", hint="")
    with mock.patch.object(package_sources.process, "run", side_effect=missing):
        plan_written(place, "egress: {allow: [{preset: node}]}\n")


def plan_written(place: Path, text: str) -> None:
    (place / "profile.yaml").write_text(HEAD + text)
    command("plan", "profile.yaml", "--instance-id", "demo")


def init_again(place: Path) -> None:
    commit(place, ktrdr__yaml="mine\n")
    command("init")


def use_home_with_space(place: Path) -> None:
    with mock.patch.dict(os.environ, {"KTRDR_VM_HOME": str(place / "with space")}):
        command("report", "demo")


def create_open_home(place: Path) -> None:
    (place / "state").mkdir()
    (place / "state").chmod(0o777)
    Home(place / "state").create()


def ask_report(place: Path) -> None:
    with mock.patch.dict(os.environ, {"KTRDR_VM_HOME": str(place)}):
        command("report", "demo")


def read_unset_secret(_place: Path) -> None:
    with mock.patch.dict(os.environ):
        os.environ.pop("KTRDR_MODEL_KEY", None)
        read_source(Secret("model_key", "/run/secrets/model_key", env="KTRDR_MODEL_KEY"))


def fetch(url: str, sources: tuple[str, ...]) -> Callable[[Path], None]:
    def provoke(place: Path) -> None:
        (place / "image.qcow2").write_bytes(b"changed")
        home = Home(place / "state")
        home.create()
        fetch_image(
            url.format(place=place), "0" * 64, ImageStore(home.images), progress=lambda _: None, sources=sources
        )

    return provoke


def lack_binding(_place: Path) -> None:
    missing = ModuleNotFoundError("No module named 'libvirt'")
    libvirt_binding.silence.cache_clear()
    with (
        mock.patch.object(libvirt_binding.importlib, "import_module", side_effect=missing),
        mock.patch.object(sys, "prefix", "/usr"),
    ):
        libvirt.Libvirt().connect()


def lack_program(_place: Path) -> None:
    with mock.patch.object(process, "find_program", return_value=None):
        process.require_program("haproxy")


def lack_kvm(_place: Path) -> Check:
    with mock.patch.object(doctor, "find_accelerator", return_value=Accelerator("tcg", "/dev/kvm does not exist")):
        return doctor._accelerator()


def lack_memory(place: Path) -> None:
    with mock.patch.object(capacity, "read_available_memory", return_value=1500):
        capacity.require_capacity(place, 2048)


def lack_disk(place: Path) -> None:
    usage = mock.Mock(free=900 << 20)
    with (
        mock.patch.object(capacity, "read_available_memory", return_value=8192),
        mock.patch.object(capacity.shutil, "disk_usage", return_value=usage),
    ):
        capacity.require_capacity(place, 2048)


def lack_sub_ids(_place: Path) -> None:
    with mock.patch.multiple(sub_ids, _read=lambda *_: [], _parse=lambda *_: [], name_user=lambda *_: "me"):
        sub_ids.find_map(1000, 1000)


FAILURES = (
    Failure("No profile is named", "`plan` and `apply` without PROFILE search for `ktrdr.yaml`.", plan_without_profile),
    Failure("The profile does not exist", "The path is relative to the current folder.", lambda _: command("plan", "sandbox.yaml")),
    Failure("`init` would overwrite a file", "It writes only what does not exist, unless it is told to.", init_again),
    Failure("The workspace is not a Git repository", "A workspace is copied from Git, so that commits can come back.", plan_outside),
    Failure("The repository has no commit", "The guest starts from a commit.", plan_without_commit),
    Failure("The clone shares objects with another one", "`git clone --shared` and `--reference` leave objects elsewhere.", plan_shared_clone),
    Failure("A key is misspelt", "Unknown keys are refused, so that no setting is ignored silently.", plan("egres: {}\n")),
    Failure("A host is written as a URL", "Rules have names and ports.", plan("egress: {allow: [{host: 'https://github.com'}]}\n")),
    Failure("A preset does not exist", "Presets are those of package clients and the shipped lists.", plan("egress: {allow: [{preset: pipy}]}\n")),
    Failure("The client of a preset is not installed", "`node` is read from the configuration of npm of this host.", plan_without_npm),
    Failure("A reserved address is allowed", "Private networks are closed unless the owner opens them.", plan("egress: {allow: [{cidr: 192.168.1.5/32}]}\n")),
    Failure("The image recipe does not exist", "An image is a shipped recipe, or a URL with a checksum.", lambda place: plan_image(place)),
    Failure("The checksum of an image is incomplete", "It has 64 hexadecimal digits.", lambda place: plan_stock(place)),
    Failure("The disk is smaller than the image", "The image must fit.", plan("resources: {disk: 2GiB}\n")),
    Failure("The VM is larger than the owner allows", "The owner's policy has upper bounds, also without a file.", plan("resources: {memory: 64GiB}\n")),
    Failure("A gate does not exist", "A gate is a playbook of the workspace or a shipped one.", plan("workspace: {}\ngates: [orders]\n")),
    Failure("A playbook uses a module that is not supported", "Everything unsupported is refused before the first task.", plan_with_gate("- hosts: all\n  tasks:\n    - ansible.builtin.cron: {name: x}\n")),
    Failure("A playbook uses a keyword that is not supported", "A gate runs in one guest.", plan_with_gate("- hosts: all\n  tasks:\n    - command: 'true'\n      delegate_to: localhost\n")),
    Failure("A template is not valid", "Templates are checked before the first task.", plan_with_gate("- hosts: all\n  tasks:\n    - command: echo {{ name\n")),
    Failure("A secret has a source that is not allowed", "Without an owner's policy, variables begin with `KTRDR_`.", plan("secrets: [{name: token, source: {env: GITHUB_TOKEN}}]\n")),
    Failure("A secret is not set", "`sudo` removes most variables.", read_unset_secret),
    Failure("A mount is outside of the workspace", "Other roots are in the owner's policy.", plan("mounts: [{source: /etc, target: /data}]\n")),
    Failure("The instance_id is not valid", "Names on the host are derived from it.", plan("", "--instance-id", "My_Instance")),
    Failure("The state directory has an unusable name", "Configurations of QEMU and HAProxy contain it.", use_home_with_space),
    Failure("Other users can change the state directory", "They could replace disks of VMs and evidence.", create_open_home),
    Failure("There is no run", "Nothing ran under this instance_id, or its evidence was removed.", ask_report),
    Failure("A program is missing", "The host lacks a package.", lack_program),
    Failure("The Python binding of libvirt is missing", "`pip install ktrdr-vm` alone is enough to plan only.", lack_binding),
    Failure("The user has no subordinate ids", "Without root, QEMU and the guards run as such users.", lack_sub_ids),
    Failure("There is no KVM", "`doctor` warns; the VM of the host, its BIOS or its kernel does not offer it.", lack_kvm),
    Failure("Memory is missing", "The capacity check runs before anything is created.", lack_memory),
    Failure("The disk is full", "A reserve is kept for the host.", lack_disk),
    Failure("The image has another checksum", "The publisher replaced the image, or the download was changed.", fetch("file://{place}/image.qcow2", ("file://",))),
    Failure("The image cannot be fetched", "The address is wrong, or the host has no network.", fetch("http://127.0.0.1:9/image.qcow2", ("http://",))),
)  # fmt: skip


def plan_image(place: Path) -> None:
    (place / "profile.yaml").write_text("version: 1\nname: p\nimage: debian-13\n")
    command("plan", "profile.yaml", "--instance-id", "demo")


def plan_stock(place: Path) -> None:
    (place / "profile.yaml").write_text(
        "version: 1\nname: p\nimage: {url: 'https://cloud.example.com/debian.qcow2', sha256: 12ab}\n"
    )
    command("plan", "profile.yaml", "--instance-id", "demo")


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ktrdr-") as made, contextlib.chdir(made):
        yield Path(made).resolve()


def provoke(failure: Failure) -> str:
    """What the program prints, with the name that the page shows for the folder."""
    with empty_folder() as place, mock.patch.object(load, "POLICY_PATH", str(place / "policy.yaml")):
        settings = {"KTRDR_VM_HOME": str(place / "state"), "no_proxy": "*"}
        try:
            with mock.patch.dict(os.environ, settings):
                check = failure.provoke(place)
        except KtrdrError as error:
            lines = [*(f"ktrdr-vm: {line}" for line in str(error).splitlines()), f"  next: {error.hint}"]
            return "\n".join(lines).replace(str(place), SHOWN)
    if isinstance(check, Check):
        return f"{check.state:<8} {check.name:<10} {check.detail}\n{'':<19} → {check.fix}"
    raise AssertionError(f"{failure.title}: nothing failed")


def render() -> str:
    """The page."""
    parts = [
        "# Troubleshooting\n\n"
        "Every error says what happened, where, and after `next:` what to do. These are the likely first ones. The page is\n"
        "written by a test that provokes each of them (`python tests/docs/failures.py --write`). `ktrdr-vm doctor` checks the\n"
        "host and prints the command for everything that is missing; [hosts.md](hosts.md) has the details.\n"
    ]
    for failure in FAILURES:
        parts.append(f"## {failure.title}\n\n{failure.cause}\n\n```text\n{provoke(failure)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.write_text(render(), encoding="utf-8")
