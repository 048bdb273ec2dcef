"""`python tests/hosts [RELEASE]`: a shell as root in a box, with this checkout in it. The box ends with the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from box.machine import Box
from box.release import RELEASES


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "bookworm"
    if name not in RELEASES:
        sys.exit(f"hosts: {name!r} is none of {', '.join(RELEASES)}")
    with Box(RELEASES[name]) as box:
        box.copy_checkout()
        subprocess.run([*box.ssh()[:-1], "-t", box.ssh()[-1]], check=False)


if __name__ == "__main__":
    main()
