"""Rows about the command itself, and about what goes over SSH once a guest is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.machines import applied
from bench.place import LIMIT, PROGRAM, ROOT, Place
from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.repository import find_repository
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.ssh_config import make_ssh_options
from ktrdr_vm.profile.model import Workspace

TIMES = 7
SMALL_FILES, LARGE_MB = 3000, 100


def quickness(place: Place) -> dict[str, float]:
    """Each in turn, a few times; the quickest of them, since everything else on the machine only adds."""
    commands: dict[str, list[str | Path]] = {
        "command.pass": [sys.executable, "-c", "pass"],
        "command.help": [PROGRAM, "--help"],
        "command.plan": [PROGRAM, "plan", place.profile, "--instance-id", "bench"],
        "command.presets": [PROGRAM, "plan", ROOT / "profiles" / "agent.yaml", "--instance-id", "bench"],
        "command.validate": [PROGRAM, "validate", place.profile],
        "command.list": [PROGRAM, "list"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TIMES):
        for name, argv in commands.items():
            began = time.monotonic()
            subprocess.run(
                argv,
                env=place.lab.environment,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            taken[name].append(time.monotonic() - began)
    return {name: min(values) for name, values in taken.items()}


def copying(place: Place) -> dict[str, float]:
    """Into a running guest, over connections that stand: the program's copy of a repository, and `tar | ssh` of the
    same folder."""
    small, large = _make_trees(place.lab.scratch / "trees")
    found = {}
    with applied(place, "bench-copy"):
        instance = Instance(place.lab.home, parse_instance_id("bench-copy"), Libvirt()).load()
        guest = instance.connect()
        options = [word for name, value in make_ssh_options(instance).items() for word in ("-o", f"{name}={value}")]
        options += [
            "-o",
            "ControlMaster=auto",
            "-o",
            f"ControlPath={place.lab.scratch}/master",
            "-o",
            "ControlPersist=60",
        ]
        ssh = ["ssh", "-F", "/dev/null", *options, "bench-copy"]
        subprocess.run([*ssh, "true"], check=True, timeout=60, stdin=subprocess.DEVNULL)
        for name, tree, include in (("small", small, ()), ("large", large, ("*.bin",))):
            began = time.monotonic()
            workspace = Workspace(target=f"/srv/ours-{name}", include=include)
            copy_in(find_repository(tree), workspace, guest, place.image.user, "bench-copy", lambda _: None)
            found[f"copy.{name}"] = time.monotonic() - began
            began = time.monotonic()
            target = f"/srv/tar-{name}"
            prepare = f"sudo install -d -o {place.image.user} {target}"
            with subprocess.Popen(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE) as packed:
                subprocess.run(
                    [*ssh, f"{prepare} && tar -C {target} -x"], stdin=packed.stdout, check=True, timeout=LIMIT
                )
            found[f"tar.{name}"] = time.monotonic() - began
        subprocess.run([*ssh, "-O", "exit"], check=False, stderr=subprocess.DEVNULL)
        instance.close()
    return found


def _make_trees(place: Path) -> tuple[Path, Path]:
    """A repository of many small files, and one with a large file that is not in Git. What is in them does not
    compress."""
    small, large = place / "small", place / "large"
    if not place.exists():
        for number in range(SMALL_FILES):
            folder = small / f"part{number // 100}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"file{number}").write_bytes(os.urandom(400).hex().encode())
        large.mkdir(parents=True)
        (large / "readme").write_text("a large file\n")
        settings = ["-c", "user.name=bench", "-c", "user.email=bench@test.lab", "-c", "init.defaultBranch=main"]
        for tree in (small, large):
            for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "files"]):
                subprocess.run(["git", *settings, *words], cwd=tree, check=True)
        (large / "large.bin").write_bytes(os.urandom(LARGE_MB << 20))
    return small, large
