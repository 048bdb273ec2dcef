"""Where it happens: the lab's namespaces with a libvirt of their own, so that no packet and no machine leaves them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lab"))

from laboratory.daemons import running_libvirt  # noqa: E402
from laboratory.instances import find_or_build_image  # noqa: E402
from laboratory.lab import Lab, enter_lab, leave_lab  # noqa: E402

from bench.prober import Watch, Way, watch  # noqa: E402
from ktrdr_vm.errors import KtrdrError  # noqa: E402
from ktrdr_vm.host.journal import read_journal  # noqa: E402
from ktrdr_vm.identity import parse_instance_id  # noqa: E402
from ktrdr_vm.images.store import Image  # noqa: E402
from ktrdr_vm.plan.guard_interface import GUEST  # noqa: E402

PROGRAM = str(Path(sys.executable).with_name("ktrdr-vm"))
LIMIT = 1200.0
# The same for everybody.
VCPUS, MEMORY, DISK = 2, 2048, 10240
PROFILE = (
    f"version: 1\nname: bench\nimage: debian-13-docker\nresources: {{vcpus: {VCPUS}, memory: {MEMORY}MiB, disk:"
    f" {DISK}MiB}}\n"
)


@dataclass
class Place:
    """The lab, the image that everybody boots, and the profile that all instances are made of."""

    lab: Lab
    image: Image
    profile: Path

    def command(self, *words: str | Path, check: bool = True) -> float:
        """Run `ktrdr-vm`; seconds that it took."""
        began = time.monotonic()
        done = subprocess.run(
            [PROGRAM, *map(str, words)],
            env=self.lab.environment,
            cwd=self.lab.scratch,
            capture_output=True,
            timeout=LIMIT,
        )
        if check and done.returncode != 0:
            raise RuntimeError(
                f"ktrdr-vm {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr.decode()[-2000:]}"
            )
        return time.monotonic() - began

    def start(self, instance_id: str, *more: str | Path) -> tuple[subprocess.Popen[bytes], Watch]:
        """`apply` of the profile, or of what `more` ends with, and a prober from outside on it."""
        words = [str(word) for word in more]
        profile = words.pop() if words and words[-1].endswith(".yaml") else str(self.profile)
        began = time.monotonic()
        process = subprocess.Popen(
            [PROGRAM, "apply", profile, "--instance-id", instance_id, "--keep", "always", *words],
            env=self.lab.environment,
            cwd=self.lab.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        return process, watch(lambda: self.find_way(instance_id), began)

    def find_way(self, instance_id: str) -> Way | None:
        paths = self.lab.home.instance(instance_id)
        with suppress(OSError, KtrdrError):
            if read_journal(paths.journal) is not None:
                return Way(
                    GUEST, self.image.user, paths.login_key.read_text(), parse_instance_id(instance_id).namespace
                )
        return None


def finish(process: subprocess.Popen[bytes], seen: Watch) -> Watch:
    """Both the command and the prober to their end."""
    _, error = process.communicate(timeout=LIMIT)
    if process.returncode != 0:
        raise RuntimeError(f"apply ended with {process.returncode}\n{error.decode()[-2000:]}")
    return seen.wait()


@contextmanager
def prepared_place() -> Iterator[Place]:
    """The image is built before the namespaces are entered, which have no mirror."""
    find_or_build_image()
    lab = enter_lab()
    try:
        with running_libvirt(lab.scratch):
            image = find_or_build_image(lab.home)
            assert image is not None
            profile = lab.scratch / "bench.yaml"
            profile.write_text(PROFILE)
            place = Place(lab, image, profile)
            try:
                yield place
            finally:
                for directory in list(lab.home.instances.iterdir()):
                    with suppress(RuntimeError):
                        place.command("destroy", "--yes", directory.name)
    finally:
        leave_lab(lab)
