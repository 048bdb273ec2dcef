"""The handlers of a play, and which of them were notified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ktrdr_vm.gates.loops import UnknownHandler
from ktrdr_vm.gates.model import Task, find_names


class Handlers:
    """Those of one play. The notified ones run in their own order, each once."""

    def __init__(self, handlers: tuple[Task, ...] = ()) -> None:
        self._handlers = handlers
        self._notified: set[int] = set()

    def notify(self, names: Iterable[str]) -> None:
        """Note the handlers with these names, and those that listen to them. UnknownHandler if there is none."""
        for name in names:
            named = [number for number, handler in enumerate(self._handlers) if name in find_names(handler)]
            listening = [number for number, handler in enumerate(self._handlers) if name in handler.listen]
            if not named and not listening:
                raise UnknownHandler(f"notify: there is no handler {name[:200]!r} in this play")
            # Of handlers with one name the last is used, as in Ansible.
            self._notified.update(named[-1:], listening)

    def take_notified(self) -> Iterator[Task]:
        """The notified handlers. One may notify others: a later one follows now, an earlier one the next time, as in
        Ansible."""
        for number, handler in enumerate(self._handlers):
            if number in self._notified:
                self._notified.discard(number)
                yield handler
