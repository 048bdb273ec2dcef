"""`run-request` and `serve`: what a place runs. Engines and connections call them, and a person only to find an
error."""

from __future__ import annotations

import os
from pathlib import Path

import click


def _set_home(_context: click.Context, _parameter: click.Parameter, folder: Path | None) -> Path | None:
    """The state directory of this host, before a world is entered for it."""
    if folder is not None:
        own = folder / str(os.geteuid())
        own.mkdir(mode=0o711, parents=True, exist_ok=True)
        os.environ["KTRDR_VM_HOME"] = str(own)
    return folder


@click.command("run-request")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--cache", type=click.Path(path_type=Path), callback=_set_home, is_eager=True, expose_value=False,
    help="A folder of this host for images, templates and runs. Default: the state directory.",
)  # fmt: skip
@click.option("--values", is_flag=True, help="Read the values of secrets that came with the request from stdin.")
def run_request(folder: Path, values: bool) -> int:
    """Run the request in FOLDER, and write its attempt there."""
    from ktrdr_vm.cli.elsewhere import note
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.attempt import run_request as run
    from ktrdr_vm.places.secret_values import read_pipe
    from ktrdr_vm.places.spool import Spool

    real = folder.resolve()
    spool = Spool(real.parent.parent)
    sent = read_pipe(0, spool.read(real.name)) if values else None
    return run(spool, real.name, find_home(), values=sent, note=note)


@click.command()
@click.option("--stdio", is_flag=True, required=True, help="Speak on standard input and output.")
def serve(stdio: bool) -> None:
    """Answer the operations of one client, as JSON lines. `ssh` starts it at the far end."""
    from importlib.metadata import version

    from ktrdr_vm.host.owner import forbid_cores
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.places.open import make_service
    from ktrdr_vm.places.serve import serve as answer
    from ktrdr_vm.places.service import SCHEMA
    from ktrdr_vm.places.wire import Lines

    home = find_home()
    # Values of secrets pass through it.
    forbid_cores()
    # Programs that are started must not write between the messages.
    reads, writes = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDWR)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    answer(Lines(reads, writes, "client"), version("ktrdr-vm"), SCHEMA, lambda settings: make_service(home, settings))


@click.command()
@click.option("--release", required=True, metavar="VERSION", help="The version of the client.")
@click.option("--settings", required=True, metavar="JSON", help="What the client's places.yaml says of this place.")
@click.argument("instance_id")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def relay(release: str, settings: str, instance_id: str, words: tuple[str, ...]) -> int:
    """Run a command of ktrdr-vm where INSTANCE_ID is, and return its exit code. `ssh` starts it at the far end."""
    import json

    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.places import open as places
    from ktrdr_vm.places.relay import relay as run

    try:
        data = json.loads(settings)
        known = {key: data[key] for key in data if isinstance(key, str)}
    except (ValueError, TypeError, RecursionError):
        raise UsageError(
            "the settings are no JSON object", where="relay", hint="use the same version of ktrdr-vm at both ends"
        ) from None
    name = parse_instance_id(instance_id).instance_id
    service = places.make_service(find_home(), known)
    # The nodes of a cluster may have it elsewhere than the login host.
    program = (str(known.get("program", "ktrdr-vm")),) if known.get("kind") == "slurm" else places.find_program()
    return run(service, program, release, name, words)
