"""The image of a profile: found in the store, built or fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.images.disk import convert_raw
from ktrdr_vm.images.recipe import Recipe
from ktrdr_vm.images.store import Image, ImageStore
from ktrdr_vm.profile.model import ImageRef


def ensure_image(
    ref: ImageRef,
    recipe: Recipe | None,
    root: Path,
    *,
    progress: Callable[[str], None],
    sources: tuple[str, ...] | None = None,
) -> Image:
    """The image of `ref`; fast if it exists. `recipe` is the one that `ref` names, None for an image by URL."""
    store = ImageStore(root)
    found = store.find(recipe.digest if recipe is not None else ref.sha256)
    if found is not None and recipe is None and found.disk_format == "raw":
        # Of an earlier version, which kept stock images as they came; plans name the qcow2 file.
        found = _convert(found, store)
    if found is not None:
        return found
    # Imported late: every `apply` comes here, and nearly all of them find the image.
    if recipe is not None:
        from ktrdr_vm.images.build import build_image

        return build_image(recipe, store, progress=progress)
    from ktrdr_vm.images.fetch import fetch_image

    return fetch_image(ref.url, ref.sha256, store, progress=progress, sources=sources)


def _convert(image: Image, store: ImageStore) -> Image:
    """The image with a qcow2 file beside the raw one, which instances of before go on using."""
    with store.lock(image.digest):
        temporary = image.directory / ".disk.qcow2"
        temporary.unlink(missing_ok=True)
        convert_raw(image.disk, temporary)
        temporary.chmod(0o444)
        temporary.rename(image.directory / "disk.qcow2")
        path = image.directory / "manifest.json"
        described = {**json.loads(path.read_bytes()), "disk_format": "qcow2"}
        write_durably(path, (json.dumps(described, indent=1, sort_keys=True) + "\n").encode(), mode=0o444)
    return store.find(image.digest) or image
