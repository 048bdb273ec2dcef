"""`bundle`: the pull-request bundle for reviewers."""

from __future__ import annotations

import click

from ktrdr_vm.cli.options import instance_argument, json_option


@click.command()
@instance_argument
@click.option("--run", "run_id", default="latest", metavar="RUN", help="A run_id. Default: the newest run.")
@click.option("--publish", "publishing", is_flag=True, help="Run the publish command of the owner's policy afterwards.")
@json_option
def bundle(instance_id: str, run_id: str, publishing: bool, as_json: bool) -> None:
    """Create the pull-request bundle of a run of INSTANCE_ID. It is refused if the Startability Gate did not pass."""
    from ktrdr_vm.cli.options import find_run
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.evidence.bundle import make_bundle, publish
    from ktrdr_vm.evidence.reader import find_workspace
    from ktrdr_vm.host.owner import find_owner
    from ktrdr_vm.policy.load import read_policy
    from ktrdr_vm.report.escape import escape

    run, policy = find_run(instance_id, run_id), read_policy()
    made = make_bundle(run, find_owner(), policy)
    if as_json:
        echo_json(
            {
                "directory": str(made.directory),
                "archive": str(made.archive),
                "title": made.title,
                "ref": made.ref,
                "branch": made.branch,
                "guest_branch": made.work,
                "base": made.base,
                "missing": list(made.missing),
                "signed": made.signed,
                "attested": made.attested,
            }
        )
    else:
        click.echo(made.directory / "PULL_REQUEST.md")
        click.echo(made.archive)
        for one in made.missing:
            click.echo(f"missing  {escape(one)}", err=True)
    if publishing:
        repository = find_workspace(run)
        if repository is None:
            raise UsageError(
                "there is no commit to publish, because the run had no workspace",
                where=str(made.directory),
                hint="only what a workload committed can be pushed; add `workspace` to the profile",
            )
        click.echo(escape(publish(made, repository, policy)).replace("\\n", "\n"), err=True, nl=False)
