"""`egress`: the ledger, tests of rules, and suggested rules."""

from __future__ import annotations

import json

import click

from ktrdr_vm.cli.options import instance_argument, json_option


@click.group()
def egress() -> None:
    """Show and test which connections an instance may open."""


@egress.command()
@instance_argument
@click.option("--denied", is_flag=True, help="Print denials only.")
@click.option("--follow", is_flag=True, help="Print new lines as they are written, until interrupted.")
@click.option(
    "--revision",
    default="",
    metavar="REV",
    help="Print lines of this revision only, or of an incarnation by its 12 digits.",
)
@json_option
def log(instance_id: str, denied: bool, follow: bool, revision: str, as_json: bool) -> None:
    """Print the ledger of INSTANCE_ID: of the instance if it exists, else of its newest run."""
    from ktrdr_vm.cli.options import find_run
    from ktrdr_vm.egress.client import GuardClient
    from ktrdr_vm.egress.ledger import read_ledger
    from ktrdr_vm.errors import KtrdrError
    from ktrdr_vm.evidence.reader import read_network
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id
    from ktrdr_vm.report.escape import escape_line

    paths = find_home().instance(parse_instance_id(instance_id).instance_id)
    if paths.ledger.exists():
        try:
            GuardClient(paths.guard).flush()
        except KtrdrError as error:
            click.echo(f"ktrdr-vm: {error.message}; its log until then follows", err=True)
        rows = read_ledger(paths.ledger, follow=follow)
    else:
        rows = read_network(find_run(instance_id, "latest"))
    for row in rows:
        if denied and row["verdict"] != "deny":
            continue
        if revision and not f"{row.get('revision', '')}-".startswith(f"{revision}-"):
            continue
        if as_json:
            click.echo(json.dumps(row))
            continue
        destination = str(row.get("name") or row.get("address") or "-")
        if row.get("port"):
            destination += f":{row['port']}"
        count = f"  x{row['count']}" if int(str(row.get("count", 1))) > 1 else ""
        detail = row.get("message") or row.get("rule") or ""
        click.echo(escape_line(f"{row['time']}  {row['verdict']:<5}  {row['kind']:<5}  {destination}{count}  {detail}"))


@egress.command()
@instance_argument
@click.argument("host")
@click.argument("port", type=int)
@json_option
def test(instance_id: str, host: str, port: int, as_json: bool) -> int:
    """Show whether INSTANCE_ID may connect to HOST on PORT, and which rule decides. Exit code 0 if allowed, 1 if
    denied."""
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.egress.connection_check import judge_connection
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.identity import parse_instance_id

    identity = parse_instance_id(instance_id)
    guard = find_home().instance(identity.instance_id).guard
    if not guard.exists():
        open_instance(instance_id).refuse_suspended()
    verdict = judge_connection(guard, host, port)
    if as_json:
        echo_json({"instance_id": identity.instance_id, "host": host, "port": port, **verdict.to_json()})
    else:
        word = "allowed" if verdict.allowed else "denied"
        click.echo(f"{word}  {host}:{port}  {verdict.kind}  {verdict.rule}  {verdict.message}")
    return 0 if verdict.allowed else 1


@egress.command()
@instance_argument
@click.option("--run", "run_id", default="latest", metavar="RUN", help="A run_id. Default: the newest run.")
@json_option
def suggest(instance_id: str, run_id: str, as_json: bool) -> None:
    """Print the smallest profile fragment that allows the destinations that a run of INSTANCE_ID was denied.

    For an observe run, it also allows the destinations that were reached without a rule. Review the fragment before you
    use it.
    """
    import yaml

    from ktrdr_vm.cli.options import find_run
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.evidence.reader import read_stored
    from ktrdr_vm.report.suggest import render_suggestion

    run = find_run(instance_id, run_id)
    try:
        content = read_stored(run)
        observed = [row for row in content["egress"]["allowed"] if row["rule"] == "observe"]
        text = render_suggestion([*observed, *content["egress"]["denied"]])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UsageError(
            "the report of this run cannot be read", where=str(run), hint="apply again with this version"
        ) from None
    if as_json:
        echo_json(yaml.safe_load(text) or {})
    else:
        click.echo(text, nl=False)
