"""The one place where lab tests get a virtual machine from, so that it can come from a template as well as from a cold
boot."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.egress.ledger import read_ledger
from ktrdr_vm.guest.personalize import make_environment, personalize
from ktrdr_vm.guest.ssh import SshGuest
from ktrdr_vm.guest.workspace import copy_in
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import PROJECT, Home
from ktrdr_vm.images.build import build_image
from ktrdr_vm.images.recipe import load_recipe
from ktrdr_vm.images.store import Image, ImageStore
from ktrdr_vm.inputs.resolve import Gathered, gather
from ktrdr_vm.instance.instance import BOOT_LIMIT, Instance
from ktrdr_vm.instance.loaded import LoadedInstance
from laboratory import probes
from laboratory.lab import LAB_HOME, LAB_IMAGES, Lab

CANARY_VARIABLE = "KTRDR_LAB_CANARY"

ALLOW = """
    - {host: allowed.test.lab, ports: [80, 443]}
    - {host: alias.test.lab, ports: [443]}
    - {host: git.test.lab, ports: [443, 22]}
    - {host: "*.wild.test.lab", ports: [443]}
    - {cidr: 198.51.100.7/32, ports: [5432]}
    - {host: ten.test.lab, ports: [80, 443, 22]}
    - {host: printer.test.lab, ports: [80, 443, 9100]}
    - {host: metadata.test.lab, ports: [80, 443]}
    - {host: loopback.test.lab, ports: [80, 443]}
    - {host: zero.test.lab, ports: [80, 443]}
    - {host: mapped.test.lab, ports: [80, 443]}
    - {host: mixed.test.lab, ports: [443]}
    - {host: six.test.lab, ports: [443]}
"""

PROFILE = f"""\
version: 1
name: lab
image: debian-13-docker
resources: {{vcpus: 2, memory: 2GiB, disk: 10GiB}}
workspace: {{source: ., target: /workspace}}
mounts:
  - {{source: ./shared, target: /data}}
egress:
  allow:{ALLOW.rstrip()}
secrets:
  - {{name: canary, source: {{env: {CANARY_VARIABLE}}}, path: /run/secrets/canary, mode: "0400", ttl: 1h}}
"""


def find_or_build_image(home: Home | None = None, name: str = "debian-13-docker") -> Image | None:
    """The image of a shipped recipe. Before the lab is entered it is built when it is not there; inside it is only
    looked up."""
    recipe = load_recipe(PROJECT / f"images/{name}.yaml")
    if home is not None:
        return ImageStore(home.images).find(recipe.digest)
    LAB_HOME.mkdir(mode=0o711, parents=True, exist_ok=True)
    store = ImageStore(LAB_IMAGES)
    return store.find(recipe.digest) or build_image(recipe, store, progress=lambda text: print(text, flush=True))


def make_workspace(place: Path) -> Path:
    """A repository with the demo stack and a folder to be mounted, as a person would have it."""
    shutil.copytree(PROJECT / "examples" / "demo-stack", place / "stack", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "shared").mkdir()
    (place / "shared" / "input.txt").write_text("from the host\n")
    (place / ".gitignore").write_text("shared/\n")
    settings = ["-c", "user.name=lab", "-c", "user.email=lab@test.lab", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "the stack"]):
        subprocess.run(["git", *settings, *words], cwd=place, check=True, timeout=60, capture_output=True)
    return place


@dataclass
class LabInstance:
    """A running sandbox: its plan, the way in, and its ledger."""

    lab: Lab
    gathered: Gathered
    instance: Instance
    loaded: LoadedInstance
    workspace: Path
    canary: bytes = field(repr=False)
    arrived_while_booting: set[tuple[str, str, int]] = field(default_factory=set)
    """Protocol, address and port of every packet outside, from before the tap was there to the first login."""

    @property
    def instance_id(self) -> str:
        return self.instance.identity.instance_id

    @property
    def guest(self) -> SshGuest:
        return self.loaded.connect()

    @property
    def environment(self) -> dict[str, str]:
        return make_environment(self.gathered.plan.identity, "sandbox", {})

    @cached_property
    def gateway(self) -> str:
        return str(json.loads((self.instance.paths.guard / "guard.json").read_text())["gateway"])

    def shell(self, line: str, timeout: float = 60, *, root: bool = True) -> tuple[int, str]:
        """Exit code and output of a shell line, as root unless told otherwise."""
        done = self.guest.run(line, timeout=timeout, become=root)
        return done.exit_code, (done.stdout + done.stderr).decode("utf-8", "replace")

    def probe_all(
        self, wanted: list[dict[str, Any]], command: str = "python3 /root/probes.py", timeout: float = 300
    ) -> list[dict[str, Any]]:
        """Probes from a root shell in the guest. `command` may start them elsewhere in it, such as in a container."""
        with Path(probes.__file__).open("rb") as source:
            self.guest.upload(source, "/root/probes.py", become=True)
        patient = [{"limit": 3, **probe} for probe in wanted]
        done = self.guest.run(command, stdin=json.dumps(patient).encode(), become=True, timeout=timeout)
        assert done.exit_code == 0, done.stderr.decode("utf-8", "replace")
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    def ledger(self, **wanted: Any) -> list[dict[str, Any]]:
        """The ledger's lines that carry these fields, after everything known was written."""
        GuardClient(self.instance.paths.guard).flush()
        return self.read_ledger(**wanted)

    def read_ledger(self, **wanted: Any) -> list[dict[str, Any]]:
        rows = read_ledger(self.instance.paths.ledger, follow=False)
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


@contextmanager
def running_instance(lab: Lab, libvirt: Libvirt) -> Iterator[LabInstance]:
    """Make it through the program's own code, as `apply` does; destroy it and ask for the residue at the end."""
    workspace = make_workspace(lab.scratch / "workspace")
    profile = workspace / "lab.yaml"
    profile.write_text(PROFILE)
    canary = f"CANARY{secrets.token_hex(16)}".encode()
    gathered = gather(profile, home=lab.home, workspace=workspace, instance_id=lab.new_id("shared"))
    lab.shared_id = gathered.plan.identity.instance_id
    instance = Instance(lab.home, gathered.plan.identity, libvirt)
    plan = gathered.plan
    assert gathered.repository is not None and plan.profile.workspace is not None
    mark = lab.recorder.mark()
    try:
        with instance.locked():
            loaded = instance.create(plan, read_secret=lambda _: canary, mount_roots=())
            made = LabInstance(lab, gathered, instance, loaded, workspace, canary)
            guest = loaded.connect(limit=BOOT_LIMIT[plan.facts.accelerator])
            made.arrived_while_booting = lab.recorder.endpoints(mark)
            personalize(guest, plan, made.environment)
            guest.run("systemctl start docker.service", become=True, timeout=300)
            loaded.complete(read_secret=lambda _: canary, mount_roots=())
            copy_in(
                gathered.repository,
                plan.profile.workspace,
                guest,
                plan.facts.image.user,
                made.instance_id,
                lambda _: None,
            )
            # As `--keep always` leaves it: commands may take it up, and nothing collects it.
            loaded.journal.keep()
            loaded.close()
        yield made
    except BaseException:
        lab.keep_evidence("the-shared-instance")
        raise
    finally:
        with instance.locked():
            instance.destroy()
        assert instance.find_residue() == []
        assert not instance.paths.directory.exists()
