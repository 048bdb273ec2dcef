"""`metrics`: metrics for Prometheus."""

from __future__ import annotations

import click


@click.command()
def metrics() -> None:
    """Print metrics of the instances of this host and of their newest runs, in the text format of Prometheus."""
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.monitoring.metrics import render_metrics

    click.echo(render_metrics(find_home(), Libvirt()), nl=False)
