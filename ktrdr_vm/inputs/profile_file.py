"""Which file is the profile of a command: the one that is named, a shipped one, or `ktrdr.yaml` of the repository."""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_vm.errors import UsageError
from ktrdr_vm.host.paths import find_shipped_profile, list_shipped

PROFILE_NAME = "ktrdr.yaml"


def find_profile(named: Path | None, workspace: Path | None) -> tuple[Path, Path]:
    """The profile and the workspace of a command, from its argument and its option `--workspace`.

    Without an argument the profile is `ktrdr.yaml` of the workspace or the nearest one above it, up to the top of the
    repository, and the workspace is by default that top. A name that is no file of the current folder can be that of a
    shipped profile. UsageError if there is no `ktrdr.yaml`.
    """
    if named is not None:
        return _find_named(named), workspace or Path()
    here = (workspace or Path()).resolve()
    top = find_top(here)
    for folder in (here, *here.parents):
        if os.path.lexists(folder / PROFILE_NAME):
            path = folder / PROFILE_NAME
            return Path(PROFILE_NAME) if folder == Path.cwd() else path, workspace or top or Path()
        if folder == (top or here):
            break
    searched = f"{here}, or a folder above it up to {top}" if top not in (None, here) else str(here)
    raise UsageError(
        f"no profile is named, and there is no {PROFILE_NAME} in {searched}",
        where="PROFILE",
        hint=(
            f"`ktrdr-vm init` writes {PROFILE_NAME}; or name a profile, for example a shipped one:"
            f" {', '.join(list_shipped('profiles'))}"
        ),
    )


def find_top(folder: Path) -> Path | None:
    """The top of the repository that contains the folder; None outside of a repository."""
    return next((one for one in (folder, *folder.parents) if os.path.lexists(one / ".git")), None)


def _find_named(named: Path) -> Path:
    if len(named.parts) != 1 or (os.path.lexists(named) and not named.is_dir()):
        return named
    return find_shipped_profile(named.name) or named
