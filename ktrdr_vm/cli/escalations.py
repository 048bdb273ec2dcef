"""`escalations`: the requests of agents and their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import instance_argument, json_option

if TYPE_CHECKING:
    from ktrdr_vm.escalation.store import Escalation

# Files that are named; an instance has at most ten times as many escalations.
_MOST_UNREAD = 20

_reason = click.option(
    "--reason", required=True, metavar="TEXT", help="The reason. The guest can read it, and the report contains it."
)


@click.group(invoke_without_command=True)
@click.pass_context
def escalations(context: click.Context) -> None:
    """List, approve, deny and revoke escalations. Without a subcommand, list all."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@escalations.command("list")
@click.argument("instance_id", required=False)
@click.option("--pending", is_flag=True, help="List only escalations without an answer.")
@json_option
def list_(instance_id: str | None, pending: bool, as_json: bool) -> None:
    """List the escalations of INSTANCE_ID, or of all instances."""
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json, say_none
    from ktrdr_vm.host.journal import list_journals, list_unreadable
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.instance.escalations import open_store
    from ktrdr_vm.report.escape import escape_line

    names = [instance_id] if instance_id else [journal.instance_id for journal in list_journals(find_home())]
    for name in () if instance_id else list_unreadable(find_home()):
        click.echo(f"note: {escape_line(name, limit=80)} is left out: its journal cannot be read", err=True)
    stores = [open_store(open_instance(name)) for name in names]
    found = [one for store in stores for one in store.list()]
    for store in stores:
        for left in sorted(store.find_unread())[:_MOST_UNREAD]:
            click.echo(
                f"note: {escape_line(left, limit=80)} of {store.instance_id} is left out: its file was changed, or is"
                " of another version",
                err=True,
            )
    found = [one for one in found if not pending or one.current == "pending"]
    if as_json:
        echo_json([one.to_json() for one in found])
        return
    if not found:
        say_none("pending escalations" if pending else "escalations", "an agent sends one with `ktrdr-escalate`")
    for one in found:
        click.echo(
            f"{one.instance_id}  {one.id:<4} {one.current:<8} {one.packet.kind:<9}"
            f" {escape_line(one.packet.blocked, limit=80)}"
        )


@escalations.command()
@instance_argument
@click.argument("escalation_id")
@json_option
def show(instance_id: str, escalation_id: str, as_json: bool) -> None:
    """Show all parts of an escalation of INSTANCE_ID."""
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.instance.escalations import open_store

    one = open_store(open_instance(instance_id)).find(escalation_id)
    if as_json:
        echo_json(one.to_json())
        return
    from ktrdr_vm.monitoring.asks import describe_ask
    from ktrdr_vm.report.escape import escape_line

    click.echo(f"{one.instance_id} {one.id}  {one.current}  {one.received_at}")
    click.echo(describe_ask(one))
    if one.answer is not None:
        click.echo(f"answered by {escape_line(one.answer.by)} at {one.answer.at}: {escape_line(one.answer.reason)}")


@escalations.command()
@instance_argument
@click.argument("escalation_id")
@_reason
@click.option("--seconds", type=int, help="Duration of the approval, at most that of the request.")
@click.option("--host", help="Approve only this host of the request.")
@click.option("--port", "ports", type=int, multiple=True, help="Approve only these ports. Repeatable.")
@click.option("--source", help="Approve only this folder beneath the requested one.")
@click.option("--readonly", is_flag=True, help="Approve the folder read-only if the request is for a writable one.")
@click.option("--memory", type=int, metavar="MIB", help="Approve at most this total memory.")
@click.option("--vcpus", type=int, help="Approve at most this total number of vCPUs.")
@click.option("--env", metavar="VARIABLE", help="Read the value of the secret from this variable.")
@click.option("--file", metavar="PATH", help="Read the value of the secret from this file.")
@json_option
def approve(
    instance_id: str,
    escalation_id: str,
    reason: str,
    seconds: int | None,
    host: str | None,
    ports: tuple[int, ...],
    source: str | None,
    readonly: bool,
    memory: int | None,
    vcpus: int | None,
    env: str | None,
    file: str | None,
    as_json: bool,
) -> None:
    """Approve an escalation of INSTANCE_ID, wholly or in part.

    The approval is applied immediately and expires. It cannot exceed the request.
    """
    from ktrdr_vm.approvals.apply import approve as act
    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.policy.load import read_policy
    from ktrdr_vm.profile.model import Secret

    parts = {
        "host": host,
        "ports": list(ports),
        "source": source,
        "readonly": readonly,
        "memory": memory,
        "vcpus": vcpus,
    }
    request = {key: value for key, value in parts.items() if value}
    secret = Secret("", "", env=env or "", file=file or "") if env or file else None
    loaded = open_instance(instance_id).load()
    try:
        _say(
            act(
                loaded,
                escalation_id,
                read_policy(),
                reason=reason,
                request=request or None,
                seconds=seconds,
                source=secret,
            ),
            as_json,
        )
    finally:
        loaded.close()


@escalations.command()
@instance_argument
@click.argument("escalation_id")
@_reason
@json_option
def deny(instance_id: str, escalation_id: str, reason: str, as_json: bool) -> None:
    """Deny an escalation of INSTANCE_ID."""
    from ktrdr_vm.approvals.apply import deny as act
    from ktrdr_vm.cli.options import open_instance

    _say(act(open_instance(instance_id), escalation_id, reason=reason), as_json)


@escalations.command()
@instance_argument
@click.argument("escalation_id")
@_reason
@json_option
def revoke(instance_id: str, escalation_id: str, reason: str, as_json: bool) -> None:
    """End an approval of INSTANCE_ID immediately, and every connection that it allowed."""
    from ktrdr_vm.approvals.apply import revoke_approval
    from ktrdr_vm.cli.options import open_instance

    loaded = open_instance(instance_id).load()
    try:
        _say(revoke_approval(loaded, escalation_id, reason=reason), as_json)
    finally:
        loaded.close()


def _say(one: Escalation, as_json: bool) -> None:
    from ktrdr_vm.cli.output import echo_json

    if as_json:
        echo_json(one.to_json())
        return
    lasting = f" for {one.answer.seconds} s" if one.answer is not None and one.answer.seconds else ""
    click.echo(f"{one.instance_id} {one.id} is {one.current}{lasting}")
