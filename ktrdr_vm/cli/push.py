"""`push`: commits and review comments into the repository of a running instance."""

from __future__ import annotations

import click

from ktrdr_vm.cli.options import expect_option, instance_argument, json_option


@click.command()
@instance_argument
@click.argument("ref", required=False)
@click.option(
    "--branch", default="", metavar="NAME", help="The branch in the guest. Default: a new one, review/<number>."
)
@click.option(
    "--comments",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="A text file for the guest; - is standard input. Without REF, it is pushed alone.",
)
@expect_option
@json_option
def push(instance_id: str, ref: str | None, branch: str, comments: str | None, expect: str, as_json: bool) -> None:
    """Push the commit REF of this host, and review comments, into the repository of INSTANCE_ID. Without both, REF is
    HEAD.

    A branch that exists in the guest is only moved forward, and not if it is checked out with uncommitted changes. No
    commit and no file of the guest is replaced.
    """
    from dataclasses import asdict

    from ktrdr_vm.cli.options import open_instance
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.guest.push import MAX_COMMENTS
    from ktrdr_vm.host.owner import find_owner, reading_as
    from ktrdr_vm.run.push import push_into

    text = b""
    if comments:
        try:
            # As the person: root would follow a link to what only root may read, and the guest would get it.
            with reading_as(find_owner()), click.open_file(comments, "rb") as file:
                text = file.read(MAX_COMMENTS + 1)
        except OSError as error:
            raise UsageError(
                f"the comments cannot be read: {error.strerror}", where=comments, hint="name a file that you may read"
            ) from None
    word = ref if ref is not None else "HEAD" if branch or not text else ""
    loaded = open_instance(instance_id).load()
    try:
        pushed = push_into(loaded, word, branch=branch, comments=text, expect=expect)
    finally:
        loaded.close()
    if as_json:
        echo_json(asdict(pushed))
        return
    if pushed.branch:
        click.echo(f"{pushed.commit[:12]}  {pushed.branch}  {'created' if pushed.created else 'moved forward'}")
    if pushed.comments:
        click.echo(f"comments  {pushed.comments}")
