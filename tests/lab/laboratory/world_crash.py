"""Makes and removes an instance in the world of its caller, and stops at one step, so that somebody can end a part of
the world there.

    python world_crash.py PROFILE INSTANCE_ID create|remove RESOURCE

It stops itself by SIGSTOP right after the step. Continued, it goes on to its end: exit code 0, or 1 with the error that
a user would see. Any other exception is a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from ktrdr_vm import enter_world
from ktrdr_vm.errors import KtrdrError


def main() -> None:
    profile, instance_id, method, name = sys.argv[1:]
    enter_world()
    # Only now: the world has another view of the state directory.
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.inputs.resolve import gather
    from ktrdr_vm.instance.instance import Instance
    from laboratory.cells import find_classes

    [owner] = [one for one in find_classes() if one.__name__.lower() == name]
    original: Any = getattr(owner, method)

    def stop_after(self: Any) -> None:
        original(self)
        os.kill(os.getpid(), signal.SIGSTOP)

    setattr(owner, method, stop_after)
    home, path = find_home(), Path(profile)
    instance = Instance(home, parse_instance_id(instance_id), Libvirt())
    plan = gather(path, home=home, workspace=path.parent, instance_id=instance_id).plan
    try:
        with instance.locked():
            instance.create(plan, read_secret=lambda _: b"", mount_roots=())
            instance.destroy()
            if found := instance.find_residue():
                sys.exit(f"left: {found}")
    except KtrdrError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
