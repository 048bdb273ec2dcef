"""Runs one instance's creation or removal and dies by its own hand at one step. A process of its own, started by the crash tests.

    python crash.py PROFILE WORKSPACE INSTANCE_ID VERB KIND WHEN

VERB is create or remove, KIND a resource's kind, WHEN before, inside or after its step. `inside` is right after the first thing that
the step did to the host.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pycdlib

from ktrdr_vm import resources
from ktrdr_vm.gather import gather
from ktrdr_vm.host import process
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.paths import find_home
from ktrdr_vm.images.ensure import ensure_image
from ktrdr_vm.instance import Instance
from ktrdr_vm.resources import make_resources
from ktrdr_vm.resources.base import Resource
from ktrdr_vm.template import build_template

# What changes the host: the first of these to return within the step is where `inside` is.
_DEEDS = {
    function.__code__
    for function in (process.run, process.start, Libvirt.start, Libvirt.stop, pycdlib.PyCdlib.write_fp, os.fdopen)
    if hasattr(function, "__code__")
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(kind: str, verb: str, when: str, classes: dict[str, type[Resource]]) -> None:
    original: Any = getattr(classes[kind], verb)

    def step(self: Resource) -> None:
        if when == "before":
            die()
        if when == "inside":

            def watch(frame: FrameType, event: str, _argument: object) -> None:
                if event == "return" and frame.f_code in _DEEDS:
                    die()

            sys.setprofile(watch)
        original(self)
        die()

    setattr(classes[kind], verb, step)


def main() -> None:
    profile, workspace, instance_id, verb, kind, when = sys.argv[1:]
    home, libvirt = find_home(), Libvirt()
    gathered = gather(Path(profile), home=home, workspace=Path(workspace), instance_id=instance_id)
    image = ensure_image(gathered.plan.profile.image, gathered.recipe, home.images, progress=print)
    template = build_template(home, gathered.plan, image, libvirt, progress=print)
    instance = Instance(home, gathered.plan.identity, libvirt)
    classes = {resource.kind: type(resource) for resource in make_resources(instance._target(), None)}
    classes |= {"mount": resources.Mount, "secret": resources.Secret}
    with instance.locked():
        if verb == "create":
            _arm(kind, verb, when, classes)
        instance.create(gathered.plan, read_secret=lambda _: b"", mount_roots=(), template=template)
        if verb == "remove":
            _arm(kind, verb, when, classes)
            instance.destroy()
    raise SystemExit("it did not die")


if __name__ == "__main__":
    main()
