"""What is made beside the machine: it is awaited before the guest runs, and no error of it is lost."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_vm.errors import ProvisionError
from ktrdr_vm.host.journal import Journal
from ktrdr_vm.host.paths import Home
from ktrdr_vm.identity import parse_instance_id
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.instance.lane import Lane
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.instance.resources.base import Blueprint


def fail() -> None:
    raise ProvisionError("no firewall", where="here", hint="none")


def test_steps_run_in_order_beside_the_caller() -> None:
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert go.wait(10)
        done.append("first")

    with Lane() as lane:
        lane.begin([first, lambda: done.append("second")])
        assert begun.wait(10)
        done.append("caller")
        go.set()
        lane.wait()
        assert done == ["caller", "first", "second"]


def test_an_error_of_a_step_ends_the_steps_and_reaches_the_caller() -> None:
    done: list[str] = []
    with pytest.raises(ProvisionError, match="no firewall"), Lane() as lane:
        lane.begin([fail, lambda: done.append("after")])
    with pytest.raises(ProvisionError, match="no firewall"), Lane() as lane:
        lane.begin([fail, lambda: done.append("after")])
        lane.wait()
        done.append("the guest ran")
    assert done == []


def test_an_error_of_the_caller_ends_the_steps_after_the_current_one() -> None:
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert go.wait(10)
        done.append("first")

    with pytest.raises(KeyError), Lane() as lane:
        lane.begin([first, lambda: done.append("second")])
        assert begun.wait(10)
        threading.Timer(0.05, go.set).start()
        raise KeyError
    assert done == ["first"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_leaves_no_step_behind(fails: bool) -> None:
    """Else the teardown that follows would race it: a guard is started behind its removal."""
    done: list[str] = []
    begun = threading.Event()

    def slow(name: str) -> None:
        begun.set()
        time.sleep(0.4)
        done.append(name)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, interrupt)
    main = threading.main_thread().ident
    assert main is not None
    try:
        with pytest.raises(KeyError if fails else KeyboardInterrupt), Lane() as lane:
            lane.begin([functools.partial(slow, "first"), functools.partial(slow, "second")])
            assert begun.wait(10)
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR2)).start()
            if fails:
                raise KeyError
        left = list(done)
        time.sleep(0.6)
        assert left == done == ["first"]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("fails", ["", "overlay", "firewall"])
def test_qemu_waits_for_its_disk_and_the_guest_for_everything_that_isolates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_instance: Callable[..., Journal], fails: str
) -> None:
    done: list[str] = []
    asked, paused = threading.Event(), threading.Event()

    class Fake:
        needs_guest = restores_plan = False

        def __init__(self, kind: str, blueprint: Blueprint) -> None:
            self.kind, self.blueprint = kind, blueprint
            self.lane = {"overlay": "disk", "domain": None}.get(kind, "isolation")

        def make(self) -> None:
            if self.kind == "domain":
                asked.set()
                self.blueprint.await_disk()
                done.append("QEMU")
                paused.set()
                self.blueprint.await_isolation()
            else:
                assert (asked if self.kind == "overlay" else paused).wait(10)
                if fails == self.kind:
                    fail()
            done.append(self.kind)

    monkeypatch.setattr(
        "ktrdr_vm.instance.loaded.make_resources",
        lambda _target, blueprint: tuple(Fake(kind, blueprint) for kind in ("overlay", "firewall", "guard", "domain")),
    )
    monkeypatch.setattr(LoadedInstance, "ensure", lambda _self, resource, *_: resource.make())
    home = Home(tmp_path)
    write_instance(home, "one")
    loaded = Instance(home, parse_instance_id("one"), None).load()  # type: ignore[arg-type]
    if fails:
        # Without its disk the VM does not start, and the other lane ends.
        threading.Timer(0.5, paused.set).start()
        with pytest.raises(ProvisionError, match="no firewall"):
            loaded.create(read_secret=lambda _: b"", mount_roots=())
        assert done == (["firewall"] if fails == "overlay" else ["overlay", "QEMU"])
    else:
        loaded.create(read_secret=lambda _: b"", mount_roots=())
        assert done == ["overlay", "QEMU", "firewall", "guard", "domain"]
