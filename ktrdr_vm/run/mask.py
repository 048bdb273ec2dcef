"""The mask of a run or a command: all secrets that the host delivers to the instance, including those during the run."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from ktrdr_vm.egress.client import ask_guard
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.instance.instance import Instance
from ktrdr_vm.report.mask import make_mask

# Seconds between two requests to a guard; the delivery of a value waits for the next one.
INTERVAL = 0.3


class GrowingMask:
    """A mask for a run, whose id is `reader`. Calling it does no I/O: `follow` gets the values from guards, in a thread."""

    def __init__(self, reader: str) -> None:
        self._reader = reader
        self._known: list[bytes] = []
        self._mask = make_mask(())
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __call__(self, text: str) -> str:
        return self._mask(text)

    def follow(self, instance: Instance) -> None:
        """Add values that are delivered to this instance from now on, until `stop`."""
        threading.Thread(target=self._poll, args=(instance.paths.guard,), daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _poll(self, guard: Path) -> None:
        have = 0
        while not self._stop.wait(INTERVAL):
            # A restarted guard counts from the beginning; one that does not answer is polled again.
            with contextlib.suppress(KtrdrError):
                reply = ask_guard(guard, "value_list", reader=self._reader, have=have)
                self.add(base64.b64decode(value) for _, value in reply["values"])
                have = int(reply["count"])

    def add(self, values: Iterable[bytes]) -> None:
        """Mask these values too, from now on."""
        with self._lock:
            fresh = [value for value in values if value not in self._known]
            if fresh:
                self._known += fresh
                self._mask = make_mask(self._known)


def find_mask(instance: Instance, warn: Callable[[str], None]) -> Callable[[str], str]:
    """The mask of the values that the guard of a running instance holds. `warn` is called with secrets that it does not hold any more."""
    expected = {secret.name for secret in instance.plan.profile.delivered}
    found: list[list[str]] = []
    with contextlib.suppress(KtrdrError):
        found = ask_guard(instance.paths.guard, "value_list", have=0)["values"]
    if lost := sorted(expected - {name for name, _ in found}):
        name = instance.identity.instance_id
        warn(
            f"not masked, because the guard was restarted or does not run: {', '.join(lost)};"
            f" `ktrdr-vm secrets rotate {name}` delivers them again"
        )
    return make_mask(base64.b64decode(value) for _, value in found)
