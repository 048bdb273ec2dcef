"""A guard that is started before its instance: it does nothing until it may serve, and never outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from laboratory.lab import Lab
from laboratory.recorder import wait_until

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.libvirt import Libvirt
from ktrdr_vm.host.links import has_link
from ktrdr_vm.instance.garbage import collect_garbage
from ktrdr_vm.instance.resources.guard import find_guards
from ktrdr_vm.instance.waiting_guard import start_guard

# In the folder of its argument: what a command that is killed does.
_STARTER = """
import sys, time
from pathlib import Path
from ktrdr_vm.instance.waiting_guard import start_guard
waiting = start_guard(Path(sys.argv[1]))
print(waiting.started.pid, flush=True)
time.sleep(600)
"""


def has_both(folder: Path, pid: int) -> bool:
    """True when the guard has started its resolver. A process that has just been started has no arguments yet."""
    found = find_guards(folder)
    return pid in found and len(found) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_it_does_nothing_before_it_may_serve_and_ends_when_nobody_can_tell_it(lab: Lab, killed: bool) -> None:
    folder = lab.home.instances / "waiting" / "guard"
    waiting = start_guard(folder)
    try:
        wait_until(lambda: has_both(folder, waiting.started.pid), "the guard and its resolver are there", 30)
        assert [path.name for path in folder.iterdir()] == ["guard.log"]
        assert waiting.started.stdin is not None
        if killed:
            waiting.started.kill()
        waiting.started.stdin.close()
        assert waiting.started.wait(30) == (-signal.SIGKILL if killed else 0)
        wait_until(lambda: not find_guards(folder), "the resolver has ended", 5)
        assert [path.name for path in folder.iterdir()] == ["guard.log"] and (folder / "guard.log").read_bytes() == b""
    finally:
        waiting.started.kill()
        waiting.started.wait()
        assert waiting.started.stdout is not None
        waiting.started.stdout.close()
        (folder / "guard.log").unlink()
        folder.rmdir()
        folder.parent.rmdir()


def test_it_ends_with_a_command_that_is_killed_and_gc_removes_its_folder(lab: Lab, libvirt: Libvirt) -> None:
    """The command was killed before it wrote a journal."""
    instance_id = lab.new_id("killed")
    folder = lab.home.instance(instance_id).guard
    with subprocess.Popen([sys.executable, "-c", _STARTER, folder], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        try:
            pid = int(starter.stdout.readline())
            wait_until(lambda: has_both(folder, pid), "the guard and its resolver are there", 30)
        finally:
            os.kill(starter.pid, signal.SIGKILL)
    wait_until(lambda: not find_guards(folder), "the guard has ended", 30)
    assert folder.exists()
    collect_garbage(lab.home, libvirt, dry_run=False)
    assert not folder.parent.exists()


def test_one_that_cannot_serve_says_why(lab: Lab) -> None:
    """Its folder has no configuration."""
    folder = lab.home.instances / "empty" / "guard"
    with pytest.raises(ProvisionError, match=r"the guard did not start: .*guard\.json") as caught:
        start_guard(folder).serve()
    assert caught.value.where == str(folder)
    wait_until(lambda: not find_guards(folder), "the resolver has ended", 5)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.parent.rmdir()


def test_links_are_found_without_a_program(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a program was started")

    monkeypatch.setattr("ktrdr_vm.host.process.run", refuse)
    assert has_link("lo") and not has_link("ktrdr-none") and not has_link("lo", "ktrdr-no-such-namespace")
