"""`python tests/lab [options of pytest]`: the lab without root, run by a person who is made for it, in that person's
world.

Everything is as under root, the namespaces of the lab included: the world's root makes them. What runs as a user of an
instance is a subordinate id of the person, and the proxy starts in the view of the daemons.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from ktrdr_vm.host.paths import PROJECT
from ktrdr_vm.world.enter import enter_world

_PLACE = "KTRDR_VM_HOME"


def main() -> int:
    if _PLACE in os.environ and os.geteuid() != 0:
        return _run_inside(Path(os.environ[_PLACE]))
    from laboratory.person import make_person

    # Ended from outside it removes the person too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with make_person(1) as person:
        # Not beneath the home: the lab's libvirtd has the view of commands, and its QEMU could not enter it.
        place = Path(f"/var/tmp/{person.name}-state")
        place.mkdir(mode=0o711)
        os.chown(place, person.uid, person.uid)
        _copy_images(place / "lab", person.uid)
        # Written where the person may write.
        written = place / "report.xml"
        wanted = next((Path(one) for before, one in pairwise(sys.argv) if before == "--junit-xml"), None)
        words = [str(written) if wanted is not None and one == str(wanted) else one for one in sys.argv[1:]]
        try:
            started = person.start(
                *words, program=[person.python, __file__], environment={_PLACE: str(place)}, stdout=None, cwd=PROJECT
            )
            code = started.wait()
            if wanted is not None and written.is_file():
                shutil.copyfile(written, wanted)
            return code
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _copy_images(lab: Path, uid: int) -> None:
    """Those that root's lab has already built; a person's state is the person's alone, so that they are copied."""
    from laboratory.lab import LAB_IMAGES

    if LAB_IMAGES.is_dir():
        lab.mkdir(mode=0o711)
        subprocess.run(["cp", "-a", "--sparse=always", LAB_IMAGES, lab / "images"], check=True, timeout=600)
        subprocess.run(["chown", "-R", f"{uid}:{uid}", lab], check=True, timeout=60)


def _run_inside(place: Path) -> int:
    temporary = place / "tmp"
    temporary.mkdir()
    os.environ |= {
        "TMPDIR": str(temporary),
        "KTRDR_VM_LAB_HOME": str(place / "lab"),
        "KTRDR_VM_LAB_EVIDENCE": str(place / "evidence"),
    }
    # The instances of the lab are in the lab's own state directory, so that the world looks idle for hours.
    (place / "world").mkdir(mode=0o700, exist_ok=True)
    (place / "world/idle-limit").write_text("86400")
    enter_world(place)
    os.chdir(PROJECT)
    os.execv(sys.executable, [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:]])


sys.exit(main())
