"""`verify` and `verify-attestation`: the gates on a commit in a fresh VM, and a check of the signed verdict."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import folder, json_option

if TYPE_CHECKING:
    from ktrdr_vm.inputs.resolve import Gathered
    from ktrdr_vm.report.model import RunReport

_file = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("ref", default="HEAD")
@click.option(
    "--base",
    default="",
    metavar="REF",
    help="The commit whose profile and playbooks judge. Default: merge base with the trusted branch.",
)
@click.option(
    "--profile",
    default="ktrdr.yaml",
    metavar="NAME",
    help="A profile in the base, or a shipped one. Default: ktrdr.yaml.",
)
@click.option(
    "--gate", "gates", multiple=True, metavar="NAME", help="Run these gates instead of the profile's. Repeatable."
)
@click.option("--instance-id", metavar="ID", help="Default: derived from the repository and REF.")
@click.option(
    "--workspace", type=folder, default=Path(), help="A folder of the repository. Default: the current folder."
)
@click.option("--cold", is_flag=True, help="Boot from power-on instead of forking a template.")
@click.option(
    "--notify",
    "commands",
    multiple=True,
    metavar="COMMAND",
    help="Send the status to COMMAND as JSON on standard input. Repeatable.",
)
@click.option(
    "--target", default="", metavar="URL", help="The address of details in the status. Default: the path of the report."
)
@click.option("--attestation", type=_file, metavar="FILE", help="Write a copy of the attestation to FILE.")
@json_option
def verify(
    ref: str,
    base: str,
    profile: str,
    gates: tuple[str, ...],
    instance_id: str | None,
    workspace: Path,
    cold: bool,
    commands: tuple[str, ...],
    target: str,
    attestation: Path | None,
    as_json: bool,
) -> int:
    """Run the gates on the commit REF, by default HEAD, in a fresh VM. The working tree is neither used nor changed."""
    from ktrdr_vm.cli.options import find_run
    from ktrdr_vm.cli.progress import TerminalListener, show_report
    from ktrdr_vm.evidence.forge import parse_command
    from ktrdr_vm.evidence.statement import ATTESTATION
    from ktrdr_vm.host.libvirt import Libvirt
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.host.runs import FinishedRun
    from ktrdr_vm.inputs.from_ref import Question, gather_ref
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.report.json import render_report_json
    from ktrdr_vm.run.listener import Options
    from ktrdr_vm.run.run import Run

    require_root()
    home, typed = find_home(), [parse_command(one) for one in commands]
    question = Question(ref, base, profile)
    with gather_ref(question, home=home, folder=workspace, instance_id=instance_id, gates=gates) as gathered:
        policy = gathered.policy
        notified = [*([policy.verify_notify] if policy.verify_notify else []), *typed]
        with _telling(notified, gathered, target) as tell:
            listener = TerminalListener(gathered)
            with listener:
                report = Run(gathered, home, Libvirt(), Options(cold=cold), listener).execute()
            directory = find_run(report.instance_id, report.run_id)
            made = directory / ATTESTATION if ATTESTATION in FinishedRun(directory).digests() else None
            tell(report, directory, made)
    if attestation is not None and made is not None:
        _copy(FinishedRun(directory).read(ATTESTATION), attestation)
    try:
        if as_json:
            click.echo(render_report_json(report), nl=False)
            sys.stdout.flush()
        show_report(report, directory, sys.stderr)
        click.echo(f"attest   {made or 'none: the run ended without a verdict'}", err=True)
    except OSError:
        # The reader has closed the stream; the exit code still holds the result.
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return report.exit_code


class _Telling:
    """Sends the status of one commit: `pending` at its creation, the verdict once."""

    def __init__(self, commands: list[tuple[str, ...]], gathered: Gathered, target: str) -> None:
        self._commands, self._gathered, self._target = commands, gathered, target
        self.told = False
        self._send("pending", "the gates run in a fresh VM")

    def __call__(self, report: RunReport, directory: Path, attestation: Path | None) -> None:
        from ktrdr_vm.report.summary import render_summary_text

        failed = ", ".join(gate.name for gate in report.gates if gate.outcome not in ("passed", "skipped"))
        passed = report.exit_code == 0
        said = (
            f"{len(report.gates)} gates passed"
            if passed
            else f"failed: {failed}"
            if failed
            else report.message or report.outcome
        )
        self.told = True
        self._target = self._target or str(directory / "report.html")
        self._send("success" if passed else "failure", said, render_summary_text(report), str(attestation or ""))

    def give_up(self, why: str) -> None:
        """Send `failure`, unless the verdict was sent."""
        if not self.told:
            self._send("failure", why)

    def _send(self, state: str, description: str, summary: str = "", attestation: str = "") -> None:
        from ktrdr_vm.evidence.forge import Status, notify_forge
        from ktrdr_vm.report.escape import escape

        facts, repository = self._gathered.plan.facts, self._gathered.repository
        assert repository is not None, "a commit is of a repository"
        status = Status(state, facts.base_commit, description, self._target, facts.base_ref, summary, attestation)  # type: ignore[arg-type]
        notify_forge(self._commands, status, repository, lambda text: click.echo(f"warning: {escape(text)}", err=True))


@contextmanager
def _telling(commands: list[tuple[str, ...]], gathered: Gathered, target: str) -> Iterator[_Telling]:
    """A run that ends with an error or an interruption before its verdict is told as `failure`."""
    telling = _Telling(commands, gathered, target)
    try:
        yield telling
    except BaseException as error:
        telling.give_up(f"not verified: {error or type(error).__name__}")
        raise


def _copy(content: bytes, path: Path) -> None:
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.owner import write_as_owner

    try:
        write_as_owner(path, content)
    except OSError as error:
        raise UsageError(
            f"the attestation cannot be written: {error.strerror}",
            where=str(path),
            hint="name a file in a folder that you may write to",
        ) from None


@click.command()
@click.argument("file", type=_file)
@click.option(
    "--key",
    type=_file,
    required=True,
    help="The owner's public key: attestation-key.pub, or a line of OpenSSH in a file.",
)
@click.option("--commit", metavar="ID", help="Require that it is about this commit, by 7 digits of its id or more.")
@click.option(
    "--files",
    "bundle",
    type=click.Path(path_type=Path, file_okay=False),
    help="Require that this folder has exactly the files that it names: the folder of a bundle.",
)
@json_option
def verify_attestation(file: Path, key: Path, commit: str | None, bundle: Path | None, as_json: bool) -> int:
    """Check the signature of an attestation and show its verdict. Exit code 0: the gates passed; 1: they failed; 2: it
    is refused."""
    from ktrdr_vm.cli.output import echo_json, say
    from ktrdr_vm.evidence.attestation import check_attestation

    found = check_attestation(file, key, commit=commit, folder=bundle)
    if as_json:
        echo_json(
            {
                "result": found.result,
                "commit": found.commit,
                "base": found.base,
                "time": found.time,
                "levels": list(found.levels),
                "plan_digest": found.plan_digest,
                "files": dict(found.files),
            }
        )
        return 0 if found.passed else 1
    say(f"{found.result}  commit {found.commit}  {found.time}")
    say(f"base     {found.base or 'none'}")
    say(f"plan     {found.plan_digest}")
    say(f"levels   {', '.join(found.levels)}")
    if bundle is not None:
        say(f"files    {len(found.files)}, all as attested")
    return 0 if found.passed else 1
