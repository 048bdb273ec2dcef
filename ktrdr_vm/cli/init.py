"""`ktrdr-vm init`: a first profile of a repository."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import folder, json_option

if TYPE_CHECKING:
    from ktrdr_vm.init.draft import Answers
    from ktrdr_vm.init.survey import Survey


@click.command()
@click.option(
    "--workspace", type=folder, default=Path(), help="A folder of the repository. Default: the current folder."
)
@click.option("--dry-run", is_flag=True, help="Print the difference to the existing files, and write nothing.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@json_option
def init(workspace: Path, dry_run: bool, force: bool, as_json: bool) -> None:
    """Write a first profile, ktrdr.yaml, and the playbooks of its gates, from what the files of the repository show.

    Each line has a comment that gives its reason. What cannot be known is a comment that says what to put.
    """
    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.process import find_program
    from ktrdr_vm.init.draft import Answers, draft_documents
    from ktrdr_vm.init.survey import survey_repository
    from ktrdr_vm.inputs.profile_file import find_top

    top = find_top(workspace.resolve())
    if top is None and (workspace / "HEAD").is_file() and (workspace / "objects").is_dir():
        raise UsageError(
            "this is a bare repository, which has no files",
            where=str(workspace.resolve()),
            hint="name a clone or a worktree of it with --workspace",
        )
    if top is None:
        raise UsageError(
            "this folder is not in a Git repository",
            where=str(workspace.resolve()),
            hint="run `git init` and commit, or name it with --workspace",
        )
    survey = survey_repository(top)
    answers = _ask(survey) if sys.stdin.isatty() and sys.stdout.isatty() and not (dry_run or as_json) else Answers()
    programs = {"apt-get": "apt-get", "pip": "pip", "pip3": "pip", "npm": "npm"}
    clients = {client for name, client in programs.items() if find_program(name) is not None}
    documents = draft_documents(survey, answers, clients)
    before = {name: _read(top, name) for name in documents}
    states = {
        name: "written" if before[name] is None else "unchanged" if before[name] == text else "differs"
        for name, text in documents.items()
    }
    if not dry_run:
        if not force and (differing := [name for name, state in states.items() if state == "differs"]):
            raise UsageError(
                f"{' and '.join(differing)} {'exists' if len(differing) == 1 else 'exist'} with another content",
                where=str(top),
                hint="`ktrdr-vm init --dry-run` shows the difference, `ktrdr-vm init --force` overwrites",
            )
        states = {name: "unchanged" if state == "unchanged" else "written" for name, state in states.items()}
        _write(top, {name: text for name, text in documents.items() if states[name] == "written"})
    if as_json:
        echo_json(
            [
                {"file": name, "state": state, "difference": _compare(name, before[name], documents[name])}
                for name, state in states.items()
            ]
        )
        return
    for name, state in states.items():
        if dry_run:
            click.echo(_compare(name, before[name], documents[name]), nl=False)
        else:
            say(f"{state:<9} {top / name}")
    if not dry_run:
        click.echo("next: read and edit these files, then `ktrdr-vm plan`, and `ktrdr-vm apply`", err=True)


def _ask(survey: Survey) -> Answers:
    """At a terminal: what the files leave open."""
    from ktrdr_vm.init.draft import Answers

    names, compose = [one.name for one in survey.composes], ""
    if len(names) > 1:
        compose = click.prompt("Compose file to start", type=click.Choice(names), default=names[0], err=True)
    while True:
        line = click.prompt("Command of the coding agent (empty: none yet)", default="", show_default=False, err=True)
        try:
            return Answers(compose, tuple(shlex.split(line)))
        except ValueError as error:
            click.echo(f"this is not a command line: {error}", err=True)


def _read(top: Path, name: str) -> str | None:
    """The file that exists; None if there is none."""
    from ktrdr_vm.host.beneath import open_file
    from ktrdr_vm.host.owner import find_owner, reading_as

    try:
        with reading_as(find_owner()), os.fdopen(open_file(top, name), "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _write(top: Path, documents: Mapping[str, str]) -> None:
    from ktrdr_vm.host.beneath import create_file
    from ktrdr_vm.host.owner import find_owner, reading_as

    for name, text in documents.items():
        # With sudo they belong to the person, who edits them.
        with reading_as(find_owner()), os.fdopen(create_file(top, name, replace=True), "wb") as file:
            file.write(text.encode())


def _compare(name: str, before: str | None, after: str) -> str:
    """The unified difference; empty if there is none."""
    source = "/dev/null" if before is None else f"a/{name}"
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True), after.splitlines(keepends=True), source, f"b/{name}"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
