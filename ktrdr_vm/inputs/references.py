"""Checks of everything that a profile names: recipes, presets, playbooks, files and folders of the workspace.

Each path is opened as it is for its use, from the workspace and without following links.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_vm.errors import DocumentError, KtrdrError, Problem, UsageError
from ktrdr_vm.host.beneath import Place, find_place, open_file, open_folder
from ktrdr_vm.host.checkout import find_above, find_top, show_option
from ktrdr_vm.host.package_sources import list_presets
from ktrdr_vm.host.paths import find_shipped, list_shipped
from ktrdr_vm.images.recipe import Recipe, load_recipe
from ktrdr_vm.images.store import refuse_disk
from ktrdr_vm.profile.load import LoadedProfile
from ktrdr_vm.profile.model import ImageRef

if TYPE_CHECKING:
    from ktrdr_vm.gates.model import Playbook


def check_references(loaded: LoadedProfile, workspace: Path, *, gates: bool = True) -> list[Problem]:
    """Missing or invalid recipes, presets and playbooks that the profile names. Reads files, starts no program.

    `workspace` is the absolute folder of `--workspace`. Without `gates`, those of the profile are not checked, because
    others replace them.
    """
    names = check_names(loaded, read_recipe(loaded.profile.image))
    return [*names, *(read_gates(loaded, workspace)[1] if gates else ())]


def read_recipe(image: ImageRef) -> Recipe | None:
    """The recipe of an image; None if it has a URL instead, or if the recipe is unknown."""
    path = None if image.url else find_shipped("images", f"{image.recipe}.yaml")
    return load_recipe(path) if path else None


def check_names(loaded: LoadedProfile, recipe: Recipe | None) -> list[Problem]:
    """Unknown recipes and presets, and a disk that is smaller than the image. `recipe` is that of the profile's
    image."""
    profile, problems = loaded.profile, []
    if not profile.image.url:
        if recipe is None:
            problems.append(
                loaded.problem(("image",), _unknown("image recipe", profile.image.recipe, list_shipped("images")))
            )
        elif reason := refuse_disk(profile.resources.disk, recipe.size):
            problems.append(loaded.problem(("resources", "disk"), reason))
    known = list_presets()
    for index, rule in enumerate(profile.egress.allow):
        if rule.preset and rule.preset not in known:
            problems.append(
                loaded.problem(("egress", "allow", index, "preset"), _unknown("preset", rule.preset, known))
            )
    return problems


def read_gates(
    loaded: LoadedProfile, workspace: Path, *, committed: bool = False
) -> tuple[tuple[tuple[str, Playbook], ...], list[Problem]]:
    """The gates of the profile with their playbooks, and all errors of those that cannot be read or parsed.

    `committed`: the workspace holds the files of a commit, so that a playbook is named by its path in it.
    """
    found: list[tuple[str, Playbook]] = []
    problems: list[Problem] = []
    for index, gate in enumerate(loaded.profile.gates):
        try:
            found.append((gate, read_playbook(find_playbook(gate, workspace), workspace, committed=committed)))
        except DocumentError as error:
            problems.extend(error.problems)
        except KtrdrError as error:
            problems.append(loaded.problem(("gates", index), f"{error.message}: {error.where}"))
    if loaded.profile.gates:
        problems += _check_variables(loaded)
    return tuple(found), problems


def _check_variables(loaded: LoadedProfile) -> list[Problem]:
    """Variables that would change how Ansible runs a task, and change nothing here."""
    from ktrdr_vm.gates.facts import refuse_setting

    reasons = ((name, refuse_setting(name)) for name, _ in loaded.profile.vars)
    return [loaded.problem(("vars", name), reason) for name, reason in reasons if reason]


def read_playbook(path: Path, workspace: Path, *, committed: bool = False) -> Playbook:
    # Parsing needs the modules, filters and tests of playbooks; a profile without gates starts without them.
    from ktrdr_vm.gates.load import load_playbook

    inside = committed and path.is_relative_to(workspace)
    return load_playbook(path, beneath=workspace, source=str(path.relative_to(workspace)) if inside else "")


def check_places(loaded: LoadedProfile, workspace: Path, mount_roots: tuple[str, ...]) -> list[Problem]:
    """Errors of all folders and files of the host that the profile names, opened as for their use: no links, no other
    mounts."""
    profile, problems = loaded.profile, []

    def check(path: tuple[str | int, ...], act: Callable[[], object], missing: str) -> None:
        try:
            act()
        except FileNotFoundError:
            problems.append(loaded.problem(path, missing))
        except OSError as error:
            problems.append(loaded.problem(path, f"cannot be opened: {error.strerror} (links are not followed)"))
        except DocumentError as error:
            problems.extend(error.problems)
        except KtrdrError as error:
            problems.append(loaded.problem(path, error.message))

    if profile.workspace and profile.workspace.source != ".":
        place = Place(workspace).join(profile.workspace.source)
        check(("workspace", "source"), lambda: find_top(place), f"there is no such folder: {place.path}")
    for index, mount in enumerate(profile.mounts):
        source = find_place(workspace / mount.source, (workspace, *map(Path, mount_roots)))
        missing = f"there is no such folder: {source.path}"
        check(("mounts", index, "source"), lambda source=source: _open_folder(source), missing)  # type: ignore[misc]
    if profile.prepare:
        playbook = profile.prepare.playbook
        missing = f"there is no playbook {playbook}"
        check(("prepare", "playbook"), lambda: read_playbook(find_playbook(playbook, workspace), workspace), missing)
        for index, name in enumerate(profile.prepare.key):
            check(("prepare", "key", index), lambda name=name: _open_key(workspace, name), "")  # type: ignore[misc]
    return problems


def _open_key(workspace: Path, name: str) -> None:
    # A file that not every branch has is part of the key all the same: as absent.
    with contextlib.suppress(FileNotFoundError):
        os.close(open_file(workspace, name))


def _open_folder(place: Place) -> None:
    with open_folder(place):
        pass


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no {kind} {name}; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")


def find_playbook(gate: str, workspace: Path, *, trusted: bool = False) -> Path:
    """The playbook of a gate by name or path: in the workspace, then shipped.

    A profile is not trusted: its gates must be in the workspace, without links in their path, or shipped. A `trusted`
    name was typed by a user: it may be elsewhere, but a path in the workspace is opened from there nevertheless.
    """
    shipped = None
    if "/" in gate or gate.endswith((".yaml", ".yml")):
        candidates = [workspace / gate]
    else:
        candidates = [workspace / "playbooks" / f"{gate}.yaml"]
        shipped = find_shipped("playbooks", f"{gate}.yaml")
        candidates += [shipped] if shipped else []
    for path in candidates:
        place = find_place(path, (workspace,))
        if path == shipped or (trusted and place.root != workspace):
            if path.is_file():
                return path
            continue
        if place.root != workspace:
            raise UsageError(
                f"the gate {gate} is outside of the workspace",
                where=str(path),
                hint="the gates of a profile are files in the workspace or shipped playbooks",
            )
        try:
            os.close(open_file(place))
        except (FileNotFoundError, NotADirectoryError):
            continue
        return path
    above = find_above(workspace)
    if above is not None and (above / os.path.relpath(candidates[0], workspace)).is_file():
        # The user is in a folder of the repository.
        option = f"--workspace {show_option(above)}"
        raise UsageError(
            f"there is no playbook for the gate {gate} in the workspace; the repository above it has one: use {option}",
            where=str(workspace),
            hint=f"name the whole repository: {option}",
        )
    raise UsageError(
        f"there is no playbook for the gate {gate}",
        where=", ".join(str(path) for path in candidates),
        hint="write playbooks/<name>.yaml in the workspace, or name a shipped gate or a path",
    )
