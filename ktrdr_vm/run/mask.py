"""The mask of a run or a command: every secret that the host delivered to an instance, also while the run goes on."""

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

# Seconds between two questions to a guard; a value that is being delivered waits for the next.
INTERVAL = 0.3


class GrowingMask:
    """A mask for a run, whose id is `reader`. Calling it does no I/O: what guards learn comes by `follow`, in a thread."""

    def __init__(self, reader: str) -> None:
        self._reader = reader
        self._known: list[bytes] = []
        self._mask = make_mask(())
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __call__(self, text: str) -> str:
        return self._mask(text)

    def follow(self, instance: Instance) -> None:
        """Take up what is delivered to this instance from now on, until `stop`."""
        threading.Thread(target=self._ask_again, args=(instance.paths.guard,), daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _ask_again(self, guard: Path) -> None:
        have = 0
        while not self._stop.wait(INTERVAL):
            # A guard that is started again counts from the beginning; one that is away answers the next time.
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
    """The mask of what the guard of a running instance knows. `warn` hears of a secret that it does not know any more."""
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
