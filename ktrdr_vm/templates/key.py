"""The key of a template: the digest of everything that a fork must share with it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ktrdr_vm.host import process
from ktrdr_vm.host.answers import Answers
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import Identity
from ktrdr_vm.images.store import Image
from ktrdr_vm.plan.cloud_init import render_user_data
from ktrdr_vm.plan.domain_memory import maps_readonly
from ktrdr_vm.plan.domain_xml import render_template_domain
from ktrdr_vm.plan.facts import Allocation, TemplateFacts
from ktrdr_vm.plan.plan import Plan

# Incremented if the preparation of a guest before the save changes.
FORMAT = 1
KEY_LENGTH = 32

# Starts late services, and runs each preloaded container image once, so that its pages are in memory.
SETTLE = """set -e
! command -v cloud-init >/dev/null || cloud-init status --wait >/dev/null || true
# A module that the first container of a fork needs.
modprobe -a veth 2>/dev/null || true
if command -v dockerd >/dev/null; then
  systemctl start docker.service
  for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}'); do
    docker run --rm --network none "$image" true >/dev/null || true
  done
fi
# One login, so that what it reads is in memory. Its key is for this one.
if command -v ssh-keygen >/dev/null; then
  home=$(getent passwd "$user" | cut -d: -f6)
  ssh-keygen -q -t ed25519 -N '' -f /run/warm
  mkdir -p "$home/.ssh"
  cp /run/warm.pub "$home/.ssh/authorized_keys"
  chown -R "$user:" "$home/.ssh"
  ssh -F /dev/null -i /run/warm -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    "$user@127.0.0.1" 'sudo -n true' </dev/null || true
  rm -f /run/warm /run/warm.pub
  # Kept empty, with its owner: a fork writes its own key into it.
  : > "$home/.ssh/authorized_keys"
fi
rm -rf /var/tmp/* /tmp/*
fstrim / 2>/dev/null || true
sync
"""


@dataclass(frozen=True)
class Project:
    """A project template, in addition to its shape. `digest` covers all inputs of its preparation."""

    name: str
    digest: str
    make_disk: Callable[[Path], None]
    """Writes the disk of the template, an overlay on the image."""
    made_from: dict[str, str] = field(default_factory=dict)
    """Folder, branch, commit and tree of the repository, for `templates list`."""


def describe_template(
    home: Home, plan: Plan, image: Image, project: Project | None = None
) -> tuple[TemplateFacts, dict[str, Any]]:
    """The key and its inputs. Paths and names are constant in it, so that it does not depend on them."""
    size = replace(plan.profile.resources, disk=max(plan.profile.resources.disk, 1))
    blank = TemplateFacts("", "/template")
    fixed = Identity("template")
    ingredients = {
        "format": FORMAT,
        "settle": SETTLE,
        "image": image.digest,
        "content": image.content_digest,
        "emulator": plan.facts.emulator,
        "qemu": read_qemu_version(home, plan.facts.emulator),
        "owner": plan.facts.owner_uid,
        "shape": [size.vcpus, size.memory, size.disk],
        "domain": render_template_domain(size, replace(plan.facts, home=str(home.root)), fixed, Allocation(), blank),
        "user_data": render_user_data(fixed, plan.facts, Allocation()),
    }
    if project is not None:
        ingredients |= {"kind": f"project {project.name}", "project": project.digest}
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
    readonly = maps_readonly(str(ingredients["qemu"]))
    directory = str(home.templates / key)
    return TemplateFacts(key, directory, has_project=project is not None, readonly=readonly), ingredients


def read_qemu_version(home: Home, emulator: str) -> str:
    """The first line of `--version`. The program is asked again when its file has changed."""
    answers, began = Answers(home.clients), time.time_ns()
    if (kept := answers.find("qemu.json", emulator)) is not None:
        return str(kept)
    version = process.run([emulator, "--version"], timeout=30).text.splitlines()[0]
    answers.keep("qemu.json", emulator, version, [emulator], began)
    return version
