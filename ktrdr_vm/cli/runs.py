"""`report`, `events`, `logs`: the evidence of a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from ktrdr_vm.cli.options import find_run, instance_argument, json_option

if TYPE_CHECKING:
    from ktrdr_vm.report.model import RunReport


_run_option = click.option(
    "--run", "run_id", default="latest", metavar="RUN", help="A run_id. Default: the newest run."
)


@click.command()
@instance_argument
@_run_option
@click.option("--against", metavar="RUN", help="Show the differences from this run: a run_id, or INSTANCE_ID/run_id.")
@json_option
def report(instance_id: str, run_id: str, against: str | None, as_json: bool) -> int:
    """Show the report of a run of INSTANCE_ID, and return the exit code of the run. With --against: 1 if something is
    worse."""
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.cli.progress import show_report
    from ktrdr_vm.evidence.reader import read_report, read_stored

    path = find_run(instance_id, run_id)
    if as_json and against is None:
        document = read_stored(path)
        echo_json(document)
        return int(document["exit_code"])
    content = read_report(path)
    if against is not None:
        other, _, run = against.rpartition("/")
        return _compare(content, read_report(find_run(other or instance_id, run)), as_json)
    show_report(content, path.resolve(), sys.stdout)
    return content.exit_code


def _compare(now: RunReport, before: RunReport, as_json: bool) -> int:
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.report.compare import compare_reports
    from ktrdr_vm.report.escape import escape

    differences = compare_reports(now, before)
    if as_json:
        echo_json([one._asdict() for one in differences])
    for one in () if as_json else differences:
        click.echo(f"{'worse ' if one.worse else '      '} {one.kind:<8} {escape(one.text)}")
    if not differences and not as_json:
        click.echo("no relevant differences")
    return 1 if any(one.worse for one in differences) else 0


@click.command()
@instance_argument
@_run_option
@click.option("--follow", is_flag=True, help="Print new lines as they are written, until interrupted.")
@click.option("--json", is_flag=True, expose_value=False, help="Has no effect: the output is always JSON lines.")
def events(instance_id: str, run_id: str, follow: bool) -> None:
    """Print the events of a run of INSTANCE_ID as JSON lines."""
    print_run_file(find_run(instance_id, run_id), "events.jsonl", follow=follow)


@click.command()
@instance_argument
@click.option("--follow", is_flag=True, help="Print new lines as they are written, until interrupted.")
def logs(instance_id: str, follow: bool) -> None:
    """Print the console log of INSTANCE_ID: of the instance if it exists, else of its newest run. Control characters
    are escaped."""
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id

    console = find_home().instance(parse_instance_id(instance_id).instance_id).console
    if console.exists():
        with console.open("rb") as file:
            print_lines(file, follow=follow)
    else:
        print_run_file(find_run(instance_id, "latest"), "console.log", follow=follow)


def print_run_file(run: Path, name: str, *, follow: bool) -> None:
    """A file of a run. UsageError if it does not exist."""
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.runs import FinishedRun

    try:
        file = FinishedRun(run).open(name)
    except FileNotFoundError:
        raise UsageError(
            "the file does not exist",
            where=str(run / name),
            hint="the run has not written it yet, or ended before it could",
        ) from None
    with file:
        print_lines(file, follow=follow)


def print_lines(file: IO[bytes], *, follow: bool) -> None:
    """Copy lines to standard output, escaped; with `follow` also lines that are written later."""
    from ktrdr_vm.report.escape import escape_line

    while True:
        line = file.readline(1024 * 1024)
        if line:
            sys.stdout.write(escape_line(line.decode("utf-8", "replace").rstrip("\n"), limit=100_000) + "\n")
        elif not follow:
            return
        else:
            sys.stdout.flush()
            time.sleep(0.2)
