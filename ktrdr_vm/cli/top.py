"""`top`: all streams at once, live."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ktrdr_vm.monitoring.top.source import Read
    from ktrdr_vm.monitoring.top.streams import Stream


@click.command()
@click.option(
    "--plain", is_flag=True, help="Print a line for each change instead of drawing: for a screen reader, or a log."
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.5),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Read this host so often.",
)
def top(plain: bool, every: float) -> None:
    """Show the instances of this host and the requests at places: phase, gate, usage, denials, and what agents ask for.

    Escalations are answered from here, and instances are entered, followed, suspended and destroyed.
    """
    from ktrdr_vm.cli.top_places import read_requests
    from ktrdr_vm.errors import HostError, UsageError
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.monitoring.top.streams import Reader

    home = find_home()
    reader = Reader(home, Libvirt())
    if plain:
        _announce(reader.read, lambda: read_requests(home), every)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "`top` draws on a terminal, and there is none",
            where="ktrdr-vm top",
            hint="`ktrdr-vm top --plain` prints lines",
        )
    try:
        from ktrdr_vm.monitoring.top.app import TopApp
    except ImportError as error:
        raise HostError(
            f"the package textual cannot be imported: {error}",
            where=sys.prefix,
            hint="`pip install 'ktrdr-vm[top]'`; `ktrdr-vm top --plain` does without",
        ) from None
    TopApp(reader.read, lambda: read_requests(home), every=every).run()


def _announce(read: Read, read_places: Read, every: float) -> None:
    """Until it is interrupted. A place that does not answer delays nothing of this host."""
    from ktrdr_vm.monitoring.top.plain import Announcer
    from ktrdr_vm.monitoring.top.source import PLACES_EVERY, Source

    announcer = Announcer(click.echo)
    results: SimpleQueue[tuple[int, Sequence[Stream]]] = SimpleQueue()
    known: dict[int, Sequence[Stream]] = {}
    for number, (one, seconds) in enumerate(((read, every), (read_places, PLACES_EVERY))):
        Source(one, seconds, lambda found, number=number: results.put((number, found)), click.echo).start()  # type: ignore[misc]
    while True:
        number, found = results.get()
        known[number] = found
        announcer.show([stream for _, streams in sorted(known.items()) for stream in streams])
