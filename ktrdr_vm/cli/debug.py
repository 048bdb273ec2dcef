"""`--debug` and KTRDR_VM_DEBUG=1: every program that is called, as a line of shell on standard error."""

from __future__ import annotations

import functools

import click

from ktrdr_vm.host import process
from ktrdr_vm.host.program_call import ProgramCall
from ktrdr_vm.report.mask import make_mask


@functools.cache
def print_programs() -> None:
    """Start printing the calls of this process; idempotent."""
    process.observe(print_call)


def print_call(call: ProgramCall) -> None:
    """The line, with all secrets that this process has read masked."""
    click.echo(call.masked(make_mask(process.list_hidden())).render_shell(), err=True)
