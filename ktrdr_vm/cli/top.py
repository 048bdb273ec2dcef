"""`top`: all streams at once, live."""

from __future__ import annotations

import sys
import time

import click


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
        from ktrdr_vm.monitoring.top.plain import Announcer

        announcer = Announcer(click.echo)
        while True:
            announcer.show([*reader.read(), *read_requests(home)])
            time.sleep(every)
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
