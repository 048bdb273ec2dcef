"""The row about a project that has work to prepare: packages to download and install, images to build.

The packages and sources are generated, and served by a host of the lab, because a bench has no way to a real index.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import random
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from laboratory.namespaces import inside, ip, make_namespace, remove_namespace

from bench.place import DISK, MEMORY, VCPUS, Place
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.inputs.resolve import gather
from ktrdr_vm.templates.project import build_best, find_best

NAME, ADDRESS, HOST = "packages.test.lab", "192.0.2.90", "192.0.2.89"
# Of each package, as those of large numeric libraries: modules, which pip compiles, and a binary.
PACKAGES, MODULES, BINARY = 12, 100, 24 << 20
# Of each of the two images: source files, which its Dockerfile compiles.
IMAGES, SOURCES = ("api", "worker"), 150

_PROFILE = f"""\
version: 1
name: {{name}}
image: debian-13-docker
resources: {{{{vcpus: {VCPUS}, memory: {MEMORY}MiB, disk: {DISK}MiB}}}}
workspace: {{{{source: ., target: /workspace}}}}
egress: {{{{allow: [{{{{host: {NAME}, ports: [80]}}}}]}}}}
gates: [./ready.yaml]
"""
_PREPARE = """\
prepare: {playbook: prepare.yaml, key: [requirements.txt, compose.yaml, api/Dockerfile, worker/Dockerfile]}
"""
_INSTALL = f"""\
- name: a project
  hosts: all
  tasks:
    - name: packages are installed
      ansible.builtin.pip:
        requirements: /workspace/requirements.txt
        virtualenv: /opt/project
        virtualenv_command: python3 -m venv
        extra_args: --index-url http://{NAME}/simple --trusted-host {NAME}
      become: true
    - name: images are built
      ansible.builtin.command: {{cmd: docker compose build, chdir: /workspace}}
"""
_READY = "the project is ready"
_CHECK = f"""\
    - name: {_READY}
      ansible.builtin.shell:
        cmd: /opt/project/bin/python ready.py && docker compose run -T --rm api && docker compose run -T --rm worker
        chdir: /workspace
"""


def prepared(place: Place) -> dict[str, float]:
    """From `apply` to the project ready, with it prepared and without. The template of the project is there before."""
    workspace = _make_project(place)
    with _serving_packages(place):
        gathered = gather(
            workspace / "prepared.yaml", home=place.lab.home, workspace=workspace, instance_id="bench-project"
        )
        trusted = replace(gathered, policy=replace(gathered.policy, prepare_refs=("main",)))
        home, plan = place.lab.home, trusted.plan
        said: list[str] = []
        if find_best(home, trusted, plan, place.image, said.append) is None:
            build_best(home, trusted, plan, place.image, Libvirt(), said.append)
        return {
            "prepared.ready": _measure(place, workspace, "prepared"),
            "unprepared.ready": _measure(place, workspace, "unprepared"),
        }


def _measure(place: Place, workspace: Path, kind: str) -> float:
    name = f"bench-{kind}"
    runs = place.lab.home.runs / name
    shutil.rmtree(runs, ignore_errors=True)
    began = time.time()
    place.command("apply", workspace / f"{kind}.yaml", "--workspace", workspace, "--instance-id", name)
    for line in (runs / "latest" / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "task_finished" and event.get("task") == _READY:
            return datetime.fromisoformat(event["time"]).timestamp() - began
    raise RuntimeError(f"the project of {kind} was never ready")


def _make_project(place: Place) -> Path:
    workspace = place.lab.scratch / "project"
    if workspace.exists():
        return workspace
    names = [f"part{number}" for number in range(PACKAGES)]
    for image in IMAGES:
        (workspace / image).mkdir(parents=True)
        (workspace / image / "Dockerfile").write_text(
            "FROM ktrdr-base:13\nWORKDIR /srv\nCOPY . .\nRUN python3 -m compileall -q .\n"
            'CMD ["python3", "-c", "import source0; print(source0.answer0(1))"]\n'
        )
        for number in range(SOURCES):
            (workspace / image / f"source{number}.py").write_text(_make_module(number))
    services = {image: {"build": image, "image": f"bench-{image}"} for image in IMAGES}
    documents = {
        "requirements.txt": "".join(f"{name}==1.0\n" for name in names),
        "compose.yaml": json.dumps({"services": services}),
        "ready.py": "".join(f"import {name}.module0\n" for name in names),
        "prepare.yaml": _INSTALL,
        "ready.yaml": _INSTALL + _CHECK,
        "unprepared.yaml": _PROFILE.format(name="unprepared"),
        "prepared.yaml": _PROFILE.format(name="prepared") + _PREPARE,
    }
    for name, text in documents.items():
        (workspace / name).write_text(text)
    settings = ["-c", "user.name=bench", "-c", "user.email=bench@test.lab", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "a project"]):
        subprocess.run(["git", *settings, *words], cwd=workspace, check=True)
    return workspace


def _make_module(number: int) -> str:
    """Source of about 4 KiB."""
    return "\n\n".join(
        f"def answer{index}(value: int) -> int:\n    return value * {index} + {number} if value else {index}"
        for index in range(45)
    )


def _make_packages(root: Path) -> None:
    """Wheels and their index. The content is the same each time."""
    if root.exists():
        return
    binary = random.Random(1).randbytes(BINARY)
    for number in range(PACKAGES):
        name = f"part{number}"
        index = root / "simple" / name
        index.mkdir(parents=True)
        wheel = index / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
            for module in range(MODULES):
                archive.writestr(f"{name}/module{module}.py", _make_module(module))
            archive.writestr(f"{name}/library.bin", binary)
            information = f"{name}-1.0.dist-info"
            archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(
                f"{information}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr(f"{information}/RECORD", "")
        (index / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


class _Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        # pip resets the connections that it keeps.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def _serving_packages(place: Place) -> Iterator[None]:
    root = place.lab.scratch / "packages"
    _make_packages(root)
    place.lab.world.dns.zone[NAME] = [("A", ADDRESS)]
    make_namespace("packages")
    try:
        ip("link add packages0 type veth peer name out netns packages")
        ip(f"addr add {HOST}/30 dev packages0")
        ip("link set packages0 up")
        ip(f"addr add {ADDRESS}/30 dev out", "packages")
        ip("link set out up", "packages")
        with inside("packages"):
            server = http.server.ThreadingHTTPServer(
                (ADDRESS, 80), functools.partial(_Files, directory=os.fspath(root))
            )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
    finally:
        with suppress(RuntimeError):
            ip("link del packages0")
        remove_namespace("packages")
