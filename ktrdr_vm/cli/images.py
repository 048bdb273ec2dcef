"""`images build|list|remove`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ktrdr_vm.cli.options import json_option

if TYPE_CHECKING:
    from ktrdr_vm.images.store import Image


@click.group()
def images() -> None:
    """Build, list and remove images."""


@images.command()
@click.argument("name", default="debian-13-docker")
@json_option
def build(name: str, as_json: bool) -> None:
    """Build the image of the recipe NAME, unless an image of this recipe exists."""
    from ktrdr_vm.cli.output import echo_json
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.paths import find_home, find_shipped
    from ktrdr_vm.images.ensure import ensure_image
    from ktrdr_vm.images.recipe import load_recipe
    from ktrdr_vm.instance.instance import require_root
    from ktrdr_vm.profile.model import ImageRef

    require_root()
    path = find_shipped("images", f"{name}.yaml")
    if path is None:
        raise UsageError(f"there is no image recipe {name}", hint="the recipes are the files in images/")
    home = find_home()
    home.create()
    recipe = load_recipe(path)
    image = ensure_image(ImageRef(recipe=name), recipe, home.images, progress=lambda text: click.echo(text, err=True))
    if as_json:
        echo_json(_describe(image))
    else:
        click.echo(image.digest)


@images.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the images in the state directory."""
    from ktrdr_vm.cli.output import echo_json, say_none
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.images.store import ImageStore

    found = ImageStore(find_home().images).list()
    if as_json:
        echo_json([_describe(image) for image in found])
        return
    if not found:
        say_none("images", "`ktrdr-vm apply` builds the one that it needs, `ktrdr-vm images build` does so beforehand")
    for image in found:
        click.echo(f"{image.digest}  {image.name}")


def _describe(image: Image) -> dict[str, str]:
    return {"name": image.name, "digest": image.digest, "content_digest": image.content_digest}


@images.command()
@click.argument("digest")
def remove(digest: str) -> None:
    """Remove the image with DIGEST, unless an instance is based on it."""
    from ktrdr_vm.errors import UsageError
    from ktrdr_vm.host.journal import list_journals, list_unreadable
    from ktrdr_vm.host.paths import find_home
    from ktrdr_vm.images.store import ImageStore, is_digest
    from ktrdr_vm.instance.instance import require_root

    require_root()
    home = find_home()
    if not is_digest(digest):
        raise UsageError("there is no such image", where=digest, hint="`ktrdr-vm images list` shows them")
    if unreadable := list_unreadable(home):
        raise UsageError(
            f"the journals of these instances cannot be read, and they may use this image: {', '.join(unreadable)}",
            where=digest,
            hint="`ktrdr-vm status` says why; destroy them first",
        )
    if users := [journal.instance_id for journal in list_journals(home) if journal.image == digest]:
        raise UsageError(f"instances use this image: {', '.join(users)}", where=digest, hint="destroy them first")
    if not ImageStore(home.images).remove(digest):
        raise UsageError("there is no such image", where=digest, hint="`ktrdr-vm images list` shows them")
