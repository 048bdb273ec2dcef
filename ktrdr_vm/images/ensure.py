"""The image of a profile: found in the store, built or fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ktrdr_vm.images.build import build_image
from ktrdr_vm.images.fetch import fetch_image
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
    if found is not None:
        return found
    if recipe is not None:
        return build_image(recipe, store, progress=progress)
    return fetch_image(ref.url, ref.sha256, store, progress=progress, sources=sources)
