"""Progress of long steps: after some seconds, what is waited for, for how long, and the limit."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

# Seconds between two notes. A step that ends sooner writes none.
EVERY = 30.0


@contextlib.contextmanager
def announce_wait(note: Callable[[str], None], doing: str, limit: float, *, every: float = EVERY) -> Iterator[None]:
    """Call `note` from a thread of its own every `every` seconds while the block runs. `limit` is that of the block, in
    seconds."""
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(every):
            note(f"{doing}: {time.monotonic() - began:.0f} s so far, at most {limit:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
