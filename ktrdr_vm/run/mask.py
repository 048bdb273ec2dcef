"""The mask of a run or a command: all secrets that the host delivers to the instance, including those during the
run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from ktrdr_vm.egress.client import GuardClient
from ktrdr_vm.errors import KtrdrError
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.report.mask import make_mask

# Seconds between two requests to a guard; the delivery of a value waits for the next one.
INTERVAL = 0.3


class GrowingMask:
    """A mask for a run, whose id is `reader`. Calling it does no I/O: `follow` gets the values from guards, in a
    thread."""

    def __init__(self, reader: str) -> None:
        self._reader = reader
        self._known: list[bytes] = []
        self._mask = make_mask(())
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __call__(self, text: str) -> str:
        return self._mask(text)

    def follow(self, guard: Path) -> None:
        """Take up what is delivered to the instance of this guard from now on, until `stop`."""
        threading.Thread(target=self._ask_again, args=(GuardClient(guard),), daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _ask_again(self, guard: GuardClient) -> None:
        have = 0
        while not self._stop.wait(INTERVAL):
            # A restarted guard counts from the beginning; one that does not answer is polled again.
            with contextlib.suppress(KtrdrError):
                found, have = guard.list_values(reader=self._reader, have=have)
                self.add(value for _, value in found)

    def add(self, values: Iterable[bytes]) -> None:
        """Mask these values too, from now on."""
        with self._lock:
            fresh = [value for value in values if value not in self._known]
            if fresh:
                self._known += fresh
                self._mask = make_mask(self._known)


def find_mask(loaded: LoadedInstance, warn: Callable[[str], None]) -> Callable[[str], str]:
    """The mask of what the guard of a running instance knows. `warn` is called for a secret that it does not know any
    more."""
    expected = {secret.name for secret in loaded.plan.profile.delivered}
    found: tuple[tuple[str, bytes], ...] = ()
    with contextlib.suppress(KtrdrError):
        found, _ = loaded.guard.list_values()
    if lost := sorted(expected - {name for name, _ in found}):
        name = loaded.instance_id
        warn(
            f"not masked, because the guard was restarted or does not run: {', '.join(lost)};"
            f" `ktrdr-vm secrets rotate {name}` delivers them again"
        )
    return make_mask(value for _, value in found)
