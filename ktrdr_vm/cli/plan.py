"""`plan`, `render` and `validate`, which require neither root nor libvirt and change nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import json_option, plan_options, profile_argument, workspace_option

if TYPE_CHECKING:
    from ktrdr_vm.inputs.resolve import Gathered
    from ktrdr_vm.plan.plan import Plan


@click.command()
@profile_argument
@plan_options
@json_option
def plan(profile: Path | None, instance_id: str | None, workspace: Path | None, as_json: bool) -> None:
    """Show what `apply` would create for PROFILE, by default ktrdr.yaml, and the digest of the plan."""
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.guest.loose_names import list_beneath
    from ktrdr_vm.host.outbound import ADVICE, find_obstacle
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.inputs.profile_file import find_profile
    from ktrdr_vm.inputs.resolve import gather
    from ktrdr_vm.report.escape import escape, escape_text

    profile, workspace = find_profile(profile, workspace)
    gathered = gather(profile, home=find_home(), workspace=workspace, instance_id=instance_id)
    made = gathered.plan
    if as_json:
        echo_json(made.to_json())
        return
    identity, size, image = made.identity, made.profile.resources, made.facts.image
    directory = made.instance_directory
    rows = [
        ("overlay", f"{directory}/overlay.qcow2", f"{size.disk} MiB on {image.name} ({image.digest[:12]})"),
        ("seed", f"{directory}/seed.iso", "cloud-init NoCloud"),
        ("namespace", identity.namespace, "a network namespace with no interface but the tap"),
        (
            "firewall",
            f"inet {identity.table}",
            f"{len(made.rules)} rules allow traffic, all other packets are dropped and counted",
        ),
        ("guard", f"{directory}/guard", "resolver, proxy, ledger"),
        ("tap", identity.tap, "moved into the namespace: a /30 network, no IPv6"),
        ("domain", identity.domain, f"{size.vcpus} vCPUs, {size.memory} MiB, {made.facts.accelerator}"),
        *(("workspace", *row) for row in _describe_workspace(gathered)),
        *(
            ("mount", mount.target, f"{mount.source}, {'read-only' if mount.readonly else 'writable'}")
            for mount in made.profile.mounts
        ),
        *(("setting", one.path, f"as on this host: {one.origin}") for one in made.facts.client_files),
        *(
            ("secret", secret.path, f"from {secret.env or secret.file}, for {secret.ttl} s")
            for secret in made.profile.delivered
        ),
        *(
            ("secret", secret.name, f"added by the guard for {broker.host}, never in the guest")
            for secret, broker in made.profile.brokered
        ),
    ]
    click.echo(f"{identity.instance_id}  {made.profile.mode}  profile {made.profile.name}")
    width = max(len(name) for _, name, _ in rows)
    for kind, name, what in rows:
        click.echo(escape(f"  + {kind:<9} {name:<{width}}  {what}"))
    _show_egress(made)
    for one in gathered.beyond:
        carries = "  (a secret can be sent there)" if one.carries else ""
        click.echo(escape(f"  ! not on the trusted branch: {one.text}{carries}"))
    for text in list_beneath(gathered.repository, made.profile) if gathered.repository is not None else ():
        click.echo(escape(f"  ! in the fresh VM beneath the commits of the workload, and judged with them: {text}"))
    difference = _find_difference(made)
    if difference:
        click.echo(escape_text(difference))
    if made.rules and (obstacle := find_obstacle()):
        click.echo(f"  note: {obstacle}; {ADVICE}", err=True)
    if not gathered.accelerator.certain:
        click.echo(f"  note: {gathered.accelerator.reason}", err=True)
    click.echo(f"digest {made.digest}")


def _show_egress(made: Plan) -> None:
    from ktrdr_vm.report.escape import escape

    if made.observe:
        click.echo("  egress OBSERVE: every public address may be reached; connections are recorded and not restricted")
    for rule in made.rules:
        weaker = "  (weaker: allows every name below it)" if rule.host.startswith("*.") else ""
        click.echo(escape(f"  egress {rule}{weaker}{'  ' + rule.reason if rule.reason else ''}"))
    for rule in made.profile.egress.allow:
        if (route := rule.requests) is None:
            continue
        what = f"{', '.join(route.methods)} beneath {', '.join(route.paths)}, at the URL in {route.base_url_env}"
        reason = f"  {rule.reason}" if rule.reason else ""
        click.echo(escape(f"  egress {route.host}:443  {what}; no connection of its own{reason}"))
    for rule in made.rules if made.profile.limited else ():
        if rule.cidr is not None and {80, 443} & set(rule.ports):
            click.echo(
                escape(
                    f"  ! egress {rule} allows every request to such a host, if one of its addresses is in this range"
                )
            )


def _describe_workspace(gathered: Gathered) -> list[tuple[str, str]]:
    """Its path in the guest, and what is copied there."""
    workspace, repository = gathered.plan.profile.workspace, gathered.repository
    if workspace is None or repository is None:
        return []
    include = f"; include: {', '.join(workspace.include)}, from that folder" if workspace.include else ""
    return [
        (
            workspace.target,
            f"{repository.root}, {repository.branch or 'a detached HEAD'} at {repository.commit[:12]}{include}",
        )
    ]


def _find_difference(made: Plan) -> str:
    """The differences from the existing instance of that name, if its journal is readable."""
    from ktrdr_vm.errors import KtrdrError
    from ktrdr_vm.host.paths import find_home

    path = find_home().instance(made.identity.instance_id).journal
    if not os.path.lexists(path):
        return ""
    # Imported late: most plans are of an instance that does not exist.
    from ktrdr_vm.host.journal import read_journal

    try:
        journal = read_journal(path)
        if journal is None:
            return ""
        from ktrdr_vm.plan.changes import render_difference
        from ktrdr_vm.plan.plan import plan_from_json

        return render_difference(plan_from_json(journal.plan), made)
    except (KtrdrError, KeyError, TypeError, ValueError):
        return ""


@click.command()
@profile_argument
@plan_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder to write to. It is created if it does not exist.",
)
@json_option
def render(profile: Path | None, instance_id: str | None, workspace: Path | None, out: Path, as_json: bool) -> None:
    """Write every document of the plan to a folder. Values that `apply` allocates are written as <placeholders>."""
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.owner import write_as_owner
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.inputs.profile_file import find_profile
    from ktrdr_vm.inputs.resolve import gather
    from ktrdr_vm.plan.plan import canonical_json

    profile, workspace = find_profile(profile, workspace)
    made = gather(profile, home=find_home(), workspace=workspace, instance_id=instance_id).plan
    documents = {**made.render(), "plan.json": canonical_json(made.to_json())}
    try:
        for name, text in documents.items():
            write_as_owner(out / name, text.encode())
    except OSError as error:
        raise UsageError(
            f"cannot write: {error.strerror}", where=str(out), hint="name a folder that you may write to with --out"
        ) from None
    if as_json:
        echo_json(
            {
                "instance_id": made.identity.instance_id,
                "digest": made.digest,
                "files": [str(out / name) for name in documents],
            }
        )
    for name in () if as_json else documents:
        click.echo(str(out / name))


@click.command()
@profile_argument
@click.option("--schema", is_flag=True, help="Print a JSON Schema for editors, and validate nothing.")
@workspace_option
@json_option
def validate(profile: Path | None, schema: bool, workspace: Path | None, as_json: bool) -> int:
    """Show all errors of PROFILE, by default ktrdr.yaml, each with file, line, column and field."""
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import DocumentError, summarize
    from ktrdr_vm.inputs.profile_file import find_profile
    from ktrdr_vm.inputs.references import check_places, check_references
    from ktrdr_vm.inputs.resolve import read_profile
    from ktrdr_vm.policy.load import read_policy
    from ktrdr_vm.policy.owner_policy import check_policy
    from ktrdr_vm.profile.json_schema import render_json_schema

    if schema:
        echo_json(render_json_schema())
        return 0
    profile, workspace = find_profile(profile, workspace)
    try:
        loaded = read_profile(profile)
        root = workspace.resolve()
        policy = read_policy()
        refused = check_policy(loaded, policy, str(root)) or check_places(loaded, root, policy.mount_roots)
        problems = sorted([*check_references(loaded, root), *refused])
    except DocumentError as error:
        problems = list(error.problems)
    if as_json:
        echo_json(
            {
                "valid": not problems,
                "problems": [
                    {
                        "file": one.source,
                        "line": one.line,
                        "column": one.column,
                        "path": one.path,
                        "message": one.message,
                    }
                    for one in problems
                ],
            }
        )
    else:
        from ktrdr_vm.report.escape import escape

        for line in summarize(problems):
            click.echo(escape(line))
        if not problems:
            click.echo(escape(f"{profile}: valid"))
    return 2 if problems else 0
