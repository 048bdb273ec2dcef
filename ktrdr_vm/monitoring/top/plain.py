"""`top --plain`: one line for each change, for a screen reader, a log or a terminal that cannot draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ktrdr_vm.monitoring.asks import describe_ask
from ktrdr_vm.monitoring.top.streams import Stream
from ktrdr_vm.report.summary import format_bytes


class Announcer:
    """Says what has changed since the last time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._shown: dict[str, str] = {}
        self._asked: set[tuple[str, str]] = set()
        self._began = False

    def show(self, streams: Sequence[Stream]) -> None:
        """Say every stream that is new, gone or changed, and every new escalation whole."""
        if not streams and not self._began:
            self._say("no streams")
        self._began = True
        for stream in streams:
            text = _describe(stream)
            if self._shown.get(stream.key) != text:
                self._say(text)
            self._shown[stream.key] = text
            for one in stream.asks:
                if (stream.key, one.id) not in self._asked:
                    self._asked.add((stream.key, one.id))
                    self._say(f"{stream.instance_id} asks, {one.id}:")
                    for line in describe_ask(one).splitlines():
                        self._say(f"    {line}")
                    self._say(
                        f"    answer with: ktrdr-vm escalations approve {stream.instance_id} {one.id} --reason TEXT (or"
                        " deny)"
                    )
        keys = {stream.key for stream in streams}
        for key in self._shown.keys() - keys:
            self._say(f"{key.partition('/')[2]} has gone")
        self._shown = {key: text for key, text in self._shown.items() if key in keys}


def _describe(stream: Stream) -> str:
    """Without what changes all the time, such as CPU and age."""
    words = [stream.instance_id, *([f"at {stream.place}"] if stream.place else []), stream.state]
    if stream.doing != stream.state:
        words.append(stream.doing)
    if stream.memory:
        # In steps, so that each of them is said once.
        words.append(f"memory {format_bytes(max(stream.memory >> 28, 1) << 28)}")
    if stream.denials:
        words.append(f"{stream.denials} connections denied")
    if stream.asks:
        words.append(f"asks {len(stream.asks)}")
    if stream.note:
        words.append(stream.note)
    return ", ".join(words)
